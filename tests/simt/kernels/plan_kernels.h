// The kernels of plans, whole or with one fault, for the tests of the tester.
#include "kernels/faults.h"  // first: what it defines changes the kernels

#include "cuda/conv2d.cuh"
#include "cuda/filter_lists.cuh"
#include "cuda/gradual_layer.cuh"
#include "cuda/group_by_pattern.cuh"
#include "cuda/head.cuh"
#include "cuda/layout.h"
#include "cuda/resample.cuh"
#include "cuda/resident_block.cuh"
#include "cuda/unit_gate.cuh"

namespace dsn::simt::bindings::DSN_VARIANT {

// A 3x3 of 8 x 8 pixels and 32 channels to 16, in two passes and two tiles, with ReLU; pooled [16] too.
void conv2d(Buffer out, Buffer in, Buffer weight, Buffer bias, Buffer pooled, Buffer scratch, Buffer macs) {
  Conv2dParams p{};
  p.samples = {nullptr, 0, 1, nullptr};
  p.source = {in.address, 64 * 32, 32, 8, 8};
  p.out = {out.address, 64 * 16, 16, 8, 8};
  p.weight = weight.address;
  p.bias = bias.data<float>();
  p.pooling = pool(pooled, scratch, macs, 16, 64);
  p.products = 1;
  p.blocks = p.items = 2;
  p.in_channels = 32, p.in_groups = 8;
  p.out_channels = p.columns = p.limit = p.block_columns = 16;
  p.activated = 16, p.activation = Activation::kRelu;
  p.in_pairs = p.wide_groups = true;
  p.taps = 9, p.stride = p.dilation = 1;
  p.kernel_rows = p.kernel_columns = 3, p.pad_rows = p.pad_columns = 1;
  p.tile_rows = 4, p.tile_columns = 8, p.tiles_across = 1;
  p.warps_down = 8;
  p.depth = 4, p.slots = 2, p.split = p.pack = 1;
  p.cell_stride = 16;
  p.at_bias = kHeaderBytes;
  p.at_sums = p.at_bias + 16 * 4;
  p.at_cells = p.at_sums + 8 * 16 * 4;
  p.at_weights = p.at_cells + 60 * 16 * 2;
  p.slot_bytes = 60 * 16 * 2 + 9 * 4 * (16 * kGroup + kConvPadding) * 2;
  start<conv2d_kernel<__half, 2, true>>(p, 2, kThreads, p.at_cells + 2 * p.slot_bytes);
}

// A 1x1 of 64 channels that is added to 16 of two samples of 8 x 8 pixels, in one tile whose input two blocks share.
void shared_conv2d(Buffer out, Buffer in, Buffer weight, Buffer bias, Buffer macs) {
  Conv2dParams p{};
  p.samples = {nullptr, 0, 2, nullptr};
  p.source = {in.address, 64 * 64, 64, 8, 8};
  p.out = {out.address, 64 * 16, 16, 8, 8};
  p.weight = weight.address;
  p.bias = bias.data<float>();
  p.pooling.macs = macs.data<unsigned long long>();
  p.pooling.tiles = p.products = p.blocks = p.items = 1;
  p.in_channels = 64, p.in_groups = 16;
  p.out_channels = p.columns = p.limit = p.block_columns = 16;
  p.accumulate = p.in_pairs = p.wide_groups = true;
  p.taps = p.stride = p.dilation = p.kernel_rows = p.kernel_columns = 1;
  p.tile_rows = p.tile_columns = 8, p.tiles_across = 1;
  p.warps_down = 8;
  p.depth = 4, p.slots = p.split = p.pack = 2;
  p.cell_stride = 16, p.old_stride = 24;
  p.at_bias = kHeaderBytes;
  p.at_old = p.at_bias + 16 * 4;
  p.at_cells = p.at_old + 128 * 24 * 2;
  p.at_weights = p.at_cells + 128 * 16 * 2;
  p.slot_bytes = 128 * 16 * 2 + 4 * (16 * kGroup + kConvPadding) * 2;
  start<conv2d_kernel<__half, 8, true>>(p, 2, kThreads, p.at_cells + kThreads * 2 * 8 * 4 * 4, 2);
}

// Two update units of 16 of 32 channels, 16 wide, no shortcut, of 8 x 8 pixels in a cluster of two.
void gradual_layer(Buffer state, Buffer weights, Buffer macs) {
  GradualParams p{};
  p.samples = {nullptr, 0, 1, nullptr};
  p.map = {state.address, 64 * 32, 32, 8, 8};
  p.macs = macs.data<unsigned long long>();
  p.weights = weights.data<unsigned char>();
  p.segments = 2;
  p.rows = 4, p.blocks = 2;
  p.groups = 8, p.channels = 32;
  p.state_stride = 48, p.width_stride = p.width_channels = 16, p.add_stride = 16;
  p.at_state = kHeaderBytes;
  p.at_mid = p.at_state + 32 * 48 * 2;
  p.at_inner = p.at_mid + 60 * 16 * 2;
  p.at_add = p.at_inner + 32 * 16 * 2;
  // 1x1 of 32 by 16, 3x3 of 16 by 16, 1x1 of 16 by 16, then 16 biases that all share; of both segments
  const int first = 32 * 16 * 2 / 16, conv = 9 * 16 * 16 * 2 / 16, last = 16 * 16 * 2 / 16;
  const int unit = first + conv + last, bias = 2 * unit;
  for (int i = 0; i < 2; ++i)
    p.segment[i] = {i * unit, bias, i * unit + first, bias, i * unit + first + conv, bias, 16 * i, 16, 16, false};
  start<gradual_layer_kernel<__half>>(p, 2, kThreads, p.at_add, 2);
}

// Two recurrent gates of 16 channels; the first is shut.
void unit_gate(Buffer pooled, Buffer weights, Buffer hidden, Buffer threshold, Buffer taken, Buffer score, Buffer words,
               Buffer macs) {
  UnitGateParams p{};
  p.samples = {nullptr, 0, 1, nullptr};
  p.pooled = pooled.data<float>();
  p.macs = macs.data<unsigned long long>();
  p.positions = 16;
  UnitGates& g = p.gates;
  g.weights =
      weights.data<unsigned char>();  // 10 x 16, 10 biases and 2 more; then input, hidden, bias, projection, its
  const float* s = weights.data<float>() + 172;
  g.shared = {s, s + 400, s + 800, s + 840, s + 850};
  g.hidden = hidden.data<float>();
  g.threshold = threshold.data<float>();
  g.taken = taken.data<uint8_t>();
  g.score = score.data<float>();
  g.words = words.data<unsigned long long>();
  g.gates = 2;
  g.word_count = 1;
  g.channels = 16;
  g.first = -1;
  g.kind = GateKind::kRecurrent;
  g.count = 2;
  g.unit[0] = {0, 40, 0, -1};
  g.unit[1] = {0, 40, 1, 0};
  start<unit_gate_kernel<kGateThreads>>(p, 1, kGateThreads, kGateBytes);
}

// The sums of 70 pixels of 8 channels.
void pool_sums(Buffer in, Buffer pooled, Buffer scratch, Buffer macs) {
  ResampleParams p{};
  p.samples = {nullptr, 0, 1, nullptr};
  p.source = p.out = {in.address, 70 * 8, 8, 70, 1};
  p.op = Op::kPoolSums;
  p.in_channels = 8;
  p.groups = 2;
  p.pooling = pool(pooled, scratch, macs, 8, 70);
  start<resample_kernel<__half, false>>(p, 2, kThreads, kHeaderBytes + 128 * 8 * 4);
}

// Two layers of 16 channels behind 16 of an 8 x 8 map, bottlenecks of 48, in two tiles. `weights`: the fields of
// packed_layer, layer after layer; pooled [48], of which the first 16 are there; scratch [34], its first two words
// zero.
DenseLayerParams dense_layers(Buffer state, Buffer pooled, Buffer taken, Buffer score, Buffer scratch, Buffer macs) {
  DenseLayerParams p{};
  p.samples = {nullptr, 0, 1, nullptr};
  p.source = {state.address, 64 * 48, 0, taken.data<uint8_t>(), 2, 64, 8, 8, 4, 16, 4, 16, 0};
  p.out = state.address;
  p.pooling.partial = scratch.data<float>() + 2;
  p.pooling.pooled = pooled.data<float>();
  p.pooling.arrived = scratch.data<unsigned>();
  p.pooling.macs = macs.data<unsigned long long>();
  p.pooling.tiles = p.pooling.blocks = 2;
  p.pooling.channels = 16;
  p.pooling.pixels = 64;
  Gates& g = p.pooling.gates;
  g.taken = taken.data<uint8_t>();
  g.score = score.data<float>();
  g.gates = g.layers = 2;
  g.positions = 48;
  g.first_groups = g.slice_groups = 4;
  g.first_channels = g.slice_channels = 16;
  g.kind = GateKind::kNone;
  p.bottleneck = p.reduce_columns = 48;
  p.growth = p.conv_columns = 16;
  p.tile_rows = 4, p.tile_columns = 8, p.tiles_across = 1;
  p.mid_stride = 48;
  p.at_masks = kHeaderBytes;
  p.at_groups = p.at_masks + 16;
  p.at_bias = p.at_groups + 12 * 8;
  p.at_sums = p.at_bias + 48 * 4;
  p.at_mid = p.at_sums + kWarps * 16 * 4;
  p.at_conv = p.at_mid + 60 * 48 * 2;
  return p;
}
constexpr int kConvBytes = 9 * 12 * (16 * kGroup + kConvPadding) * 2;

ResidentLayer dense_weights(int layer) {
  int at = layer ? static_cast<int>(packed_layer::layout({16, 0, 16}, 16, 48, Merge::kConcat, Element::kHalf).size) : 0;
  const PackedLayout own = packed_layer::layout({16, layer, 16}, 16, 48, Merge::kConcat, Element::kHalf);
  auto place = [&](int field) { return at + static_cast<int>(own.fields[field].offset); };
  return {place(packed_layer::kNorm), place(packed_layer::kReduce), place(packed_layer::kReduceBias),
          place(packed_layer::kConstants), place(packed_layer::kConv)};
}

// The two layers as launches of their own, then
void dense_layer(Buffer state, Buffer weights, Buffer pooled, Buffer taken, Buffer score, Buffer scratch, Buffer macs) {
  for (int layer = 0; layer < 2; ++layer) {
    DenseLayerParams p = dense_layers(state, pooled, taken, score, scratch, macs);
    const ResidentLayer at = dense_weights(layer);
    const auto* from = weights.data<unsigned char>();
    p.layer = p.source.slices = layer;
    p.total_groups = 4 + 4 * layer;
    p.norm = from + at.norm;
    p.reduce = from + at.reduce;
    p.reduce_bias = reinterpret_cast<const float*>(from + at.reduce_bias);
    p.constants = reinterpret_cast<const float*>(from + at.constants);
    p.conv = from + at.conv;
    p.pooling.arrived += layer;
    p.pooling.first_channel = 16 + 16 * layer;
    p.pooling.gates.first_layer = 2;  // none is left to decide
    start<bottleneck_layer_kernel<__half, 6, 2, true>>(p, 2, kThreads, p.at_conv + kConvBytes);
  }
}

// as a cluster of two that walks them.
void dense_block(Buffer state, Buffer weights, Buffer pooled, Buffer taken, Buffer score, Buffer scratch, Buffer macs) {
  ResidentBlockParams p{};
  p.layer = dense_layers(state, pooled, taken, score, scratch, macs);
  p.weights = weights.data<unsigned char>();
  for (int layer = 0; layer < 2; ++layer) p.layers[layer] = dense_weights(layer);
  p.at_pooled = p.layer.at_conv + kConvBytes;
  p.at_received = p.at_pooled + 48 * 4;
  start<resident_block_kernel<__half, 6, 2>>(p, 2, kThreads, p.at_received + 2 * 2 * 16 * 4, 2);
}

// Ten classes of an 8 x 8 map of 16 channels.
void head(Buffer logits, Buffer map, Buffer norm, Buffer weight, Buffer bias, Buffer macs) {
  HeadParams p{};
  p.samples = {nullptr, 0, 1, nullptr};
  p.source = {map.address, 64 * 16, 0, nullptr, 0, 64, 8, 8, 4, 16, 0, 0, 0};
  p.macs = macs.data<unsigned long long>();
  p.norm = norm.data<float>();
  p.weight = weight.data<float>();
  p.bias = bias.data<float>();
  p.logits = logits.data<float>();
  p.row = p.classes = 10;
  p.channels = 16, p.total_groups = 4;
  p.at_masks = kHeaderBytes;
  p.at_groups = p.at_masks + 16;
  p.at_features = p.at_groups + 32;
  start<head_kernel<__half>>(p, 1, kThreads, p.at_features + 64);
}

// The lists of one mask of 70 filters, then samples with equal masks side by side.
void filter_lists(Buffer masks, Buffer lists, Buffer counts, Buffer first, Buffer order, int batch) {
  FilterListsParams p{};
  p.samples = {nullptr, 0, batch, nullptr};
  p.masks = masks.data<uint8_t>();
  p.lists = lists.data<uint16_t>();
  p.counts = counts.data<int32_t>();
  p.gates = p.list_stride = 70;
  p.count_stride = p.count = 1;
  p.list[0] = {0, 0, 0, 1};
  p.range[0] = {70, 0};
  start<filter_lists_kernel<kThreads>>(p, batch, kThreads, 0);
  const GroupParams g{masks.data<uint8_t>(), first.data<int32_t>(), order.data<int64_t>(), batch, 70};
  start<first_equal_kernel>(g, 1, kThreads, 0);
  start<place_kernel>(g, 1, kThreads, kGroupBytes);
}

static const Binder bind_conv2d(DSN_NAME(conv2d, DSN_TEXT(DSN_VARIANT)), conv2d);
static const Binder bind_shared_conv2d(DSN_NAME(shared_conv2d, DSN_TEXT(DSN_VARIANT)), shared_conv2d);
static const Binder bind_gradual_layer(DSN_NAME(gradual_layer, DSN_TEXT(DSN_VARIANT)), gradual_layer);
static const Binder bind_unit_gate(DSN_NAME(unit_gate, DSN_TEXT(DSN_VARIANT)), unit_gate);
static const Binder bind_dense_layer(DSN_NAME(dense_layer, DSN_TEXT(DSN_VARIANT)), dense_layer);
static const Binder bind_dense_block(DSN_NAME(dense_block, DSN_TEXT(DSN_VARIANT)), dense_block);
static const Binder bind_head(DSN_NAME(head, DSN_TEXT(DSN_VARIANT)), head);
static const Binder bind_filter_lists(DSN_NAME(filter_lists, DSN_TEXT(DSN_VARIANT)), filter_lists);
static const Binder bind_pool_sums(DSN_NAME(pool_sums, DSN_TEXT(DSN_VARIANT)), pool_sums);

}  // namespace dsn::simt::bindings::DSN_VARIANT
