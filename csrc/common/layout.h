// Packed weight layouts: written here once, read by the kernels and, through pybind11, by the Python code that packs.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>

#include "../cpu/machine.h"
#include "../plan/instruction.h"

namespace dsn {

// A tile is 32 pixels of one channel: two AVX-512 vectors, four AVX2 vectors. A block's state is
// [tile][channel][kTile], so a tile's channels are contiguous and concat is writing further on.
constexpr int kTile = 32;
constexpr int kAlign = 16;  // floats; every packed field starts on a cache line

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
inline int64_t ceil_div(int64_t n, int64_t d) { return (n + d - 1) / d; }

// Output channels are computed `row_block` at a time: the least padding, larger blocks preferred. Packed weights have
// even blocks, so that two outputs can be a pair; filters that a sample chooses may have odd ones.
inline int row_block(int64_t out_channels, bool odd = false) {
  int best = 12;
  double best_cost = 1e30;
  for (auto choice : kRowBlocks) {
    double cost = choice.cost * static_cast<double>(round_up(out_channels, choice.rows));
    if (cost < best_cost && (odd || choice.rows % 2 == 0)) best = choice.rows, best_cost = cost;
  }
  return best;
}
inline int64_t padded_rows(int64_t out_channels) { return round_up(out_channels, row_block(out_channels)); }

// bfloat16: two channels of a slice, the first in the lower half of a word, stand in the place of one channel. A slice
// of an odd number ends in a pair whose second weight is zero.
inline int64_t pairs(int64_t channels) { return ceil_div(channels, 2); }

// Plain data, built anew for each sample: no allocation.
struct Shape {
  int dims = 0;
  std::array<int64_t, 4> sizes{};
  Shape(std::initializer_list<int64_t> list) {
    for (int64_t n : list) sizes[dims++] = n;
  }
  Shape() = default;
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < dims; ++i) n *= sizes[i];
    return n;
  }
};

struct Field {
  const char* name = "";
  int64_t offset = 0;  // in floats from where the layout begins
  Shape shape;         // an empty field has a zero in its shape
};

struct Layout {
  std::array<Field, 11> fields;
  int count = 0;
  int64_t size = 0;
  void add(const char* name, Shape shape) {
    fields[count++] = {name, size, shape};
    size = round_up(size + shape.numel(), kAlign);
  }
};

// Weights of a convolution with `taps` taps: [row block][in channel][tap][row].
inline Shape conv_shape(int64_t out, int64_t in, int64_t taps) {
  int rows = row_block(out);
  return {ceil_div(out, rows), in, taps, rows};
}

// Winograd's F(2x2, 3x3) on the CPU: outputs that are worked on at a time, and 2x2 patches at most; a vector of
// patches.
constexpr int kWinogradRows = 8;
constexpr int kWinogradPatches = 64;
constexpr int kWinogradVector = 16;

// Pixels that a row takes there: 8 or 16, so that whole rows of patches make a vector, or whole vectors of 32.
inline int64_t winograd_row(int64_t width) { return width <= 8 ? 8 : width <= 16 ? 16 : round_up(width, 32); }

// Patches of a map, those behind its edges too, in whole vectors.
inline int64_t winograd_patches(int64_t height, int64_t width) {
  return round_up(ceil_div(height, 2) * winograd_row(width) / 2, kWinogradVector);
}

// Of weights as G w G^T: [row of positions][block of outputs][column, in][output].
inline Shape winograd_shape(int64_t out, int64_t in) {
  return {4, ceil_div(out, kWinogradRows), 4 * in, kWinogradRows};
}

// Whether a 3x3 convolution of such a map can go that way, and gains by it: 16 products for a patch instead of nine for
// a pixel of whole tiles.
inline bool winograd_pays(int64_t in, int64_t out, int64_t height, int64_t width) {
  return in >= 8 && out >= kWinogradRows &&
         winograd_patches(height, width) * 16 * kWinogradCost <= round_up(height * width, kTile) * 9;
}

// One gated layer of a dense block with `in` input channels, of which the last `skippable * growth`
// come from earlier layers of the block. BN1 is (scale, shift); BN2 is folded into the convolution
// before it and leaves `bias`. A skipped slice is the constant relu(shift) for its consumers:
// `constants` holds, per slice, its product with the consumer's weights (per tap for a 3x3). bfloat16: the weights of
// the convolutions are words of two. winograd: those of the 3x3 are there once more.
namespace dense_layer {
enum { kGate, kGateBias, kScale, kShift, kReduce, kReduceBias, kConstants, kConv, kConvBias, kExpand, kWinogradConv };
inline Layout layout(int64_t in, int64_t growth, int64_t bottleneck, int64_t skippable, Merge merge,
                     bool bfloat16 = false, bool winograd = false) {
  bool add = merge == Merge::kAdd;
  int64_t slices = add ? 0 : skippable;
  int64_t depth = bfloat16 ? pairs(in - slices * growth) + slices * pairs(growth) : in;
  int64_t inner = bfloat16 ? pairs(bottleneck) : bottleneck;
  Layout l;
  l.add("gate", {in});
  l.add("gate_bias", {1});
  l.add("scale", {in});
  l.add("shift", {in});
  l.add("reduce", bottleneck ? conv_shape(bottleneck, depth, 1) : Shape{0});
  l.add("reduce_bias", {bottleneck ? padded_rows(bottleneck) : 0});
  l.add("constants", bottleneck ? Shape{slices, padded_rows(bottleneck)} : Shape{slices, 9, padded_rows(growth)});
  int64_t conv_out = add ? bottleneck : growth;
  l.add("conv", conv_shape(conv_out, bottleneck ? inner : depth, 9));
  l.add("conv_bias", {add ? padded_rows(conv_out) : 0});
  l.add("expand", add ? conv_shape(in, inner, 1) : Shape{0});
  l.add("winograd", winograd ? winograd_shape(conv_out, bottleneck) : Shape{0});
  return l;
}
}  // namespace dense_layer

// BN-ReLU-1x1-average-pool over `in` channels, the guide's behind the source's; `slices` skippable
// slices of the source, then of the guide.
namespace transition {
enum { kScale, kShift, kWeight, kConstants };
inline Layout layout(int64_t in, int64_t out, int64_t slices) {
  Layout l;
  l.add("scale", {in});
  l.add("shift", {in});
  l.add("weight", conv_shape(out, in, 1));
  l.add("constants", {slices, padded_rows(out)});
  return l;
}
}  // namespace transition

// BN-ReLU-GAP-linear.
namespace head {
enum { kScale, kShift, kWeight, kBias, kConstants };
inline Layout layout(int64_t in, int64_t classes, int64_t slices) {
  Layout l;
  l.add("scale", {in});
  l.add("shift", {in});
  l.add("weight", {in, classes});
  l.add("bias", {classes});
  l.add("constants", {slices, classes});
  return l;
}
}  // namespace head

// A convolution with its batch norm folded in, perhaps after another BN-ReLU (scale, shift). With a filter mask the
// weights are [in][tap][out], so that chosen filters can be packed for a sample as its gates ask. `slices` skippable
// slices of a 1x1's input are constants after that BN-ReLU. For Winograd the weights are there once more as G w G^T:
// [row of positions][block of outputs][column, in][output]. Of several groups the weights and biases of each follow one
// another, in whole blocks.
namespace conv2d {
enum { kScale, kShift, kWeight, kBias, kWinogradWeight, kConstants };
// Weights that a mask chooses from become pairs of bfloat16 when they are chosen.
inline Layout layout(int64_t in, int64_t out, int64_t taps, bool normalise, bool masked, bool winograd, int64_t slices,
                     bool bfloat16 = false, int64_t groups = 1) {
  Layout l;
  l.add("scale", {normalise ? in : 0});
  l.add("shift", {normalise ? in : 0});
  Shape weight = conv_shape(out / groups, bfloat16 ? pairs(in) : in / groups, taps);
  weight.sizes[0] *= groups;
  l.add("weight", masked ? Shape{in, taps, round_up(out, kTile)} : weight);
  const int64_t rows = groups * padded_rows(out / groups);
  l.add("bias", {winograd ? round_up(rows, kWinogradRows) : rows});
  l.add("winograd", winograd ? winograd_shape(out, in) : Shape{0});
  l.add("constants", {slices, padded_rows(out)});
  return l;
}
}  // namespace conv2d

// BN-ReLU-GAP, then (1 + gamma) f + beta with (gamma, beta) a linear map of `gates` gates, then linear. "path" holds
// gamma's and beta's column of each gate.
namespace path_head {
enum { kScale, kShift, kPath, kPathBias, kWeight, kBias };
inline Layout layout(int64_t in, int64_t classes, int64_t gates) {
  Layout l;
  l.add("scale", {in});
  l.add("shift", {in});
  l.add("path", {gates, 2, in});
  l.add("path_bias", {2, in});
  l.add("weight", {in, classes});
  l.add("bias", {classes});
  return l;
}
}  // namespace path_head

// A recurrent gate embeds its pooled input for the LSTM that all gates share.
namespace gate {
constexpr int64_t kEmbedding = 10;
}  // namespace gate

// Ops whose weights instructions.def lists: their fields, and the layout; empty for any other op.
namespace listed {
enum { kWeight, kBias };
inline Layout layout(const Instruction& in) {
  Layout l;
#define DSN_WEIGHT(id, name, ...) \
  if (in.op == Op::id) l.add(#name, {__VA_ARGS__});
#include "../plan/instructions.def"
  return l;
}
}  // namespace listed

namespace gate {
// Of a recurrent one's own weights.
inline Layout embedding_layout(int64_t in) {
  Instruction gate;
  gate.op = Op::kGate;
  gate.gate = GateKind::kRecurrent;
  gate.in_channels = in;
  return listed::layout(gate);
}
}  // namespace gate

// LSTM(10, 10) and its projection; gates in torch's order: input, forget, cell, output. `bias` is the sum of both.
namespace recurrence {
enum { kInput, kHidden, kBias, kProjection, kProjectionBias };
inline Layout layout() {
  constexpr int64_t n = gate::kEmbedding;
  Layout l;
  l.add("input", {4 * n, n});
  l.add("hidden", {4 * n, n});
  l.add("bias", {4 * n});
  l.add("projection", {n});
  l.add("projection_bias", {1});
  return l;
}
}  // namespace recurrence

namespace stem {
enum { kWeight };
inline Layout layout(int64_t in, int64_t out) {
  Layout l;
  l.add("weight", conv_shape(out, in, 9));
  return l;
}
}  // namespace stem

}  // namespace dsn
