// How the GPU kernels' weights and states lie in memory. Plain C++: the schedule, the kernels' parameters and, through
// pybind11, the Python code that packs read it from here.
//
// Channels come in groups of four, which a lane loads at once. A sample's state is its first channels,
// [pixel][channel], then one slice, [pixel][channel], for each layer: a layer's write is one contiguous piece, and a
// skipped slice is not read. First channels and slices are padded to whole groups; the padding holds zeros.
//
// A weight of a product is [tap][group][column][4]: lane t of a quad holds group t of a k-step for the activations as
// well as for the weights, so the order of k inside the tensor core's instruction cancels out, and a k-step may take
// its four groups from anywhere. That is what drops the slices of skipped layers without a copy.
#pragma once

#include "common/layout.h"
#include "cuda/params.h"

namespace dsn::cuda {

constexpr int kStep = 16;  // channels that a k-step multiplies

enum class Element : int64_t { kFloat, kHalf, kBfloat16 };
inline int64_t bytes_of(Element e) { return e == Element::kFloat ? 4 : 2; }

inline int64_t groups_of(int64_t channels) { return ceil_div(channels, kGroup); }
inline int64_t columns_of(int64_t out_channels) { return round_up(out_channels, 16); }

// Channels of a state: the first ones, then `slices` slices of `width` each.
struct Channels {
  int64_t first = 0, slices = 0, width = 0;
  int64_t groups() const { return groups_of(first) + slices * groups_of(width); }
};

struct PackedField {
  const char* name = "";
  int64_t offset = 0;  // in bytes from where the layout begins
  Shape shape;
  bool wide = false;  // float32 whatever the element
};

struct PackedLayout {
  Element element = Element::kFloat;
  std::array<PackedField, 10> fields{};
  int count = 0;
  int64_t size = 0;  // bytes
  void add(const char* name, Shape shape, bool wide = false) {
    fields[count++] = {name, size, shape, wide};
    size = round_up(size + shape.numel() * (wide ? 4 : bytes_of(element)), 16);
  }
};

// A block's gates, a row for each layer over all channels of the block, zero beyond the layer's input.
namespace packed_gates {
enum { kWeight, kBias };
inline PackedLayout layout(const Channels& out, int64_t layers) {
  PackedLayout l;
  l.add("gate", {layers, out.groups() * kGroup}, true);
  l.add("gate_bias", {layers}, true);
  return l;
}
}  // namespace packed_gates

// One layer; the fields are those of dsn::dense_layer. `norm` holds scale and shift of each group.
namespace packed_layer {
enum { kNorm, kReduce, kReduceBias, kConstants, kConv, kConvBias, kExpand };
inline PackedLayout layout(const Channels& in, int64_t growth, int64_t bottleneck, Merge merge, Element element) {
  const bool add = merge == Merge::kAdd;
  const int64_t out = add ? bottleneck : growth;
  PackedLayout l{element};
  l.add("norm", {in.groups(), 2, kGroup});
  l.add("reduce", bottleneck ? Shape{1, in.groups(), columns_of(bottleneck), kGroup} : Shape{0});
  l.add("reduce_bias", {bottleneck ? columns_of(bottleneck) : 0}, true);
  l.add("constants", bottleneck ? Shape{in.slices, columns_of(bottleneck)} : Shape{in.slices, 9, columns_of(growth)},
        true);
  l.add("conv", {9, bottleneck ? columns_of(bottleneck) / kGroup : in.groups(), columns_of(out), kGroup});
  l.add("conv_bias", {add ? columns_of(out) : 0}, true);
  l.add("expand", add ? Shape{1, columns_of(bottleneck) / kGroup, columns_of(in.first), kGroup} : Shape{0});
  return l;
}
}  // namespace packed_layer

// The guide's groups follow the source's.
namespace packed_transition {
enum { kNorm, kWeight, kConstants };
inline PackedLayout layout(const Channels& source, const Channels& guide, int64_t out, Element element) {
  PackedLayout l{element};
  const int64_t groups = source.groups() + guide.groups();
  l.add("norm", {groups, 2, kGroup}, true);
  l.add("weight", {1, groups, columns_of(out), kGroup});
  l.add("constants", {source.slices + guide.slices, columns_of(out)}, true);
  return l;
}
}  // namespace packed_transition

// Of a map whose single channels may hold no data (`live`), each of them has constants.
namespace packed_head {
enum { kNorm, kWeight, kBias, kConstants };
inline PackedLayout layout(const Channels& in, int64_t classes, bool live) {
  PackedLayout l;
  l.add("norm", {in.groups(), 2, kGroup}, true);
  l.add("weight", {classes, in.groups() * kGroup}, true);
  l.add("bias", {classes}, true);
  l.add("constants", {live ? in.first : in.slices, classes}, true);
  return l;
}
}  // namespace packed_head

// A head whose features the gates scale and shift: "path" holds gamma's and beta's column of each gate.
namespace packed_path_head {
enum { kNorm, kWeight, kBias, kPath, kPathBias };
inline PackedLayout layout(const Channels& in, int64_t classes, int64_t gates) {
  PackedLayout l;
  l.add("norm", {in.groups(), 2, kGroup}, true);
  l.add("weight", {classes, in.groups() * kGroup}, true);
  l.add("bias", {classes}, true);
  l.add("path", {gates, 2, in.groups() * kGroup}, true);
  l.add("path_bias", {2, in.groups() * kGroup}, true);
  return l;
}
}  // namespace packed_path_head

// Channels and taps of the image count as one depth, tap fastest, padded to whole k-steps.
namespace packed_stem {
enum { kWeight };
inline PackedLayout layout(int64_t in, int64_t out, Element element) {
  PackedLayout l{element};
  l.add("weight", {1, round_up(in * 9, kStep) / kGroup, columns_of(out), kGroup});
  return l;
}
}  // namespace packed_stem

// A convolution of a map from channel src_offset on, its batch norm folded in: `products` side by side, of `in` inputs
// and `out` outputs each. Where inputs or filters are chosen the weights are there a second time, a filter's neighbour
// beside it, so that any of them can be gathered; and where inputs that hold no data are normalised, what each of them
// is, times its weights.
namespace packed_conv2d {
enum { kNorm, kWeight, kSelectable, kBias, kConstants };
// That a product reads, in whole k-steps. Its inputs may begin within a group, those of several products anywhere in
// it.
inline int64_t groups(int64_t src_offset, int64_t in, int64_t products = 1) {
  const int64_t front = products > 1 && in % kGroup ? kGroup - 1 : src_offset % kGroup;
  return round_up(front + in, kStep) / kGroup;
}
inline PackedLayout layout(int64_t src_offset, int64_t in, int64_t out, int64_t taps, int64_t products, bool normalise,
                           bool chosen, bool constants, Element element) {
  PackedLayout l{element};
  const int64_t depth = groups(src_offset, in, products);
  l.add("norm", normalise ? Shape{products * depth, 2, kGroup} : Shape{0});
  l.add("weight", {products * taps, depth, columns_of(out), kGroup});
  l.add("selectable", chosen ? Shape{taps, in, columns_of(out)} : Shape{0});
  l.add("bias", {products * columns_of(out)}, true);
  l.add("constants", constants ? Shape{in, columns_of(out)} : Shape{0}, true);
  return l;
}
}  // namespace packed_conv2d

// Fields of dsn::listed and dsn::recurrence, float32.
inline PackedLayout wide_layout(const Layout& fields) {
  PackedLayout l;
  for (int i = 0; i < fields.count; ++i) l.add(fields.fields[i].name, fields.fields[i].shape, true);
  return l;
}

}  // namespace dsn::cuda
