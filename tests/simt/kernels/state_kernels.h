// As plan_kernels.h: the kernels around a dense block, and the layers without a cluster.
#include "kernels/faults.h"  // first: what it defines changes the kernels

#include "cuda/image.cuh"
#include "cuda/layout.h"
#include "cuda/preact_conv2d.cuh"

namespace dsn::simt::bindings::DSN_VARIANT {

constexpr int kPointwiseSums = kPointwiseThreads / 32 * kPointwiseTiles * 8 * 4;  // bytes

// A 3x3 of an image of 2 channels, 10 x 8, to 16.
void stem(Buffer out, Buffer image, Buffer weight, Buffer pooled, Buffer scratch, Buffer macs) {
  StemParams p{};
  p.samples = {nullptr, 0, 1, nullptr};
  p.pooling = pool(pooled, scratch, macs, 16, 80);
  p.image = image.address, p.image_is_float = true;
  p.out = out.address, p.out_stride = 80 * 16, p.pixel_stride = 16;
  p.weight = weight.address;
  p.in_channels = 2, p.height = 10, p.width = 8;
  p.depth_groups = 8;
  p.columns = p.out_channels = 16, p.out_groups = 4;
  start<stem_kernel<__half>>(p, 2, kPointwiseThreads, kHeaderBytes + kPointwiseSums);
}

// 20 x 16 pixels of 16 channels and two slices of 16, to half as many each way of 16.
void transition(Buffer out, Buffer state, Buffer taken, Buffer norm, Buffer weight, Buffer constants, Buffer pooled,
                Buffer scratch, Buffer macs) {
  TransitionParams p{};
  p.samples = {nullptr, 0, 1, nullptr};
  p.source = {state.address, 320 * 48, 0, taken.data<uint8_t>(), 2, 320, 16, 20, 4, 16, 4, 16, 2};
  p.pooling = pool(pooled, scratch, macs, 16, 80);
  p.out = out.address, p.out_stride = 80 * 16;
  p.norm = norm.data<float>();
  p.weight = weight.address;
  p.constants = constants.data<float>();
  p.source_groups = 12;
  p.columns = p.out_channels = 16, p.out_groups = 4;
  p.out_width = 8, p.out_pixels = 80;
  p.at_masks = kHeaderBytes;
  p.at_groups = p.at_guide_groups = p.at_masks + 16;
  p.at_bias = p.at_groups + 12 * 8;
  p.at_sums = p.at_bias + kPointwiseTiles * 8 * 4;
  start<transition_kernel<__half>>(p, 2, kPointwiseThreads, p.at_sums + kPointwiseSums);
}

// What the layers of 16 channels have in common: two tiles of an 8 x 8 map. `weights`: the fields of `layout`.
DenseLayerParams layer_of_map(Buffer state, Buffer weights, const PackedLayout& layout) {
  DenseLayerParams p{};
  p.samples = {nullptr, 0, 1, nullptr};
  p.out = state.address;
  auto at = [&](int field) { return weights.data<unsigned char>() + layout.fields[field].offset; };
  auto wide = [&](int field) { return reinterpret_cast<const float*>(at(field)); };
  p.norm = at(packed_layer::kNorm);
  p.reduce = at(packed_layer::kReduce), p.reduce_bias = wide(packed_layer::kReduceBias);
  p.constants = wide(packed_layer::kConstants);
  p.conv = at(packed_layer::kConv), p.conv_bias = wide(packed_layer::kConvBias);
  p.expand = at(packed_layer::kExpand);
  p.growth = p.conv_columns = 16;
  p.tile_rows = 4, p.tile_columns = 8, p.tiles_across = 1;
  p.mid_stride = 16;
  p.at_masks = kHeaderBytes;
  p.at_groups = p.at_masks + 16;
  p.at_bias = p.at_groups + 12 * 8;
  return p;
}
constexpr int kSumBytes = kWarps * 16 * 4, kMidBytes = 60 * 16 * 2;

// A 3x3 of 16 channels and two slices of 16 into a third, four groups at a time. pooled: of the third.
void plain_layer(Buffer state, Buffer weights, Buffer taken, Buffer pooled, Buffer scratch, Buffer macs) {
  DenseLayerParams p =
      layer_of_map(state, weights, packed_layer::layout({16, 2, 16}, 16, 0, Merge::kConcat, Element::kHalf));
  p.source = {state.address, 64 * 64, 0, taken.data<uint8_t>(), 2, 64, 8, 8, 4, 16, 4, 16, 2};
  p.pooling = pool(pooled, scratch, macs, 16, 64);
  p.layer = 2;
  p.total_groups = 12;
  p.depth = 4;
  p.at_sums = p.at_bias + 25 * 16 * 4;
  p.at_mid = p.at_sums + kSumBytes;
  start<plain_layer_kernel<__half>>(p, 2, kThreads, p.at_mid + kMidBytes);
}

// A residual unit of 16 channels, 16 wide, from the first copy of the state into that `copy_stride` behind it.
void residual_layer(Buffer state, Buffer weights, Buffer pooled, Buffer scratch, Buffer macs, int copy_stride) {
  DenseLayerParams p =
      layer_of_map(state, weights, packed_layer::layout({16, 0, 0}, 16, 16, Merge::kAdd, Element::kHalf));
  p.source = {state.address, 2 * 64 * 16, copy_stride, nullptr, 0, 64, 8, 8, 4, 16, 0, 0, 0};
  p.pooling = pool(pooled, scratch, macs, 16, 64);
  p.total_groups = 4;
  p.bottleneck = p.reduce_columns = p.expand_columns = 16;
  p.wide_stride = 16;
  p.at_sums = p.at_bias + 16 * 4;
  p.at_mid = p.at_sums + kSumBytes;
  p.at_wide = p.at_mid + kMidBytes;
  start<residual_layer_kernel<__half, 8>>(p, 2, kThreads, p.at_wide + 32 * 16 * 2);
}

static const Binder bind_stem(DSN_NAME(stem, DSN_TEXT(DSN_VARIANT)), stem);
static const Binder bind_transition(DSN_NAME(transition, DSN_TEXT(DSN_VARIANT)), transition);
static const Binder bind_plain_layer(DSN_NAME(plain_layer, DSN_TEXT(DSN_VARIANT)), plain_layer);
static const Binder bind_residual_layer(DSN_NAME(residual_layer, DSN_TEXT(DSN_VARIANT)), residual_layer);

}  // namespace dsn::simt::bindings::DSN_VARIANT
