#include "compiled_plan.h"

#include <algorithm>
#include <numeric>

#include "kernels.h"

namespace dsn::cpu {
namespace {

std::vector<Layout> layouts_of(const Plan& plan, const Instruction& in, int64_t slices) {
  switch (in.op) {
    case Op::kStem:
      return {stem::layout(in.in_channels, in.out_channels)};
    case Op::kDenseBlock: {
      std::vector<Layout> layers;
      for (int64_t l = 0; l < in.layers; ++l) {
        const int64_t channels = in.in_channels + (in.merge == Merge::kAdd ? 0 : l * in.out_channels);
        layers.push_back(dense_layer::layout(channels, in.out_channels, in.bottleneck, l, in.merge,
                                             in.flags & kBfloat16, in.flags & kWinograd));
      }
      return layers;
    }
    case Op::kTransition: {
      const int64_t guide = in.guide >= 0 ? plan.buffers[in.guide].channels : 0;
      return {transition::layout(in.in_channels + guide, in.out_channels, slices)};
    }
    case Op::kHead:
      return {head::layout(in.in_channels, in.out_channels, slices)};
    case Op::kConv2d:
      return {conv2d::layout(in.in_channels, in.out_channels, in.taps, in.flags & kNormalise, in.out_mask >= 0,
                             in.flags & kWinograd, slices, in.flags & kBfloat16, in.groups)};
    case Op::kPathHead:
      return {path_head::layout(in.in_channels, in.out_channels, in.layers)};
    default: {
      const Layout listed = listed::layout(in);
      return std::vector<Layout>(listed.count ? 1 : 0, listed);
    }
  }
}

// Whether a convolution, or the 3x3 of a dense block's layers, may go by Winograd's algorithm.
bool allows_winograd(const Plan& plan, const Instruction& in) {
  if (in.op != Op::kConv2d && in.op != Op::kDenseBlock) return false;
  const BufferSpec& dst = plan.buffers[in.dst];
  if (in.op == Op::kDenseBlock)
    return in.bottleneck && in.merge == Merge::kConcat && !(in.flags & kBfloat16) &&
           winograd_pays(in.bottleneck, in.out_channels, dst.height, dst.width);
  return in.taps == 9 && in.stride == 1 && !in.columns && !(in.flags & (kNormalise | kLive | kBfloat16)) &&
         in.out_mask < 0 && in.activated == 0 && in.groups == 1 && in.activation <= Activation::kRelu &&
         winograd_pays(in.in_channels, in.out_channels, dst.height, dst.width);
}

}  // namespace

CompiledPlan::CompiledPlan(const char* op, const int64_t* words, int64_t count) : plan(op, words, count) {
  int64_t most = 0;
  normalised.resize(plan.buffers.size());
  for (size_t i = 0; i < plan.code.size(); ++i) {
    const Instruction& in = plan.code[i];
    check(!(in.flags & kBfloat16) || bfloat16_kernels(), op, ": bfloat16 on the CPU needs AVX-512");
    check(!(in.flags & kWinograd) || allows_winograd(plan, in), op, ": instruction ", i,
          " of the plan does not allow Winograd's algorithm");
    int64_t end = in.weights;
    for (const Layout& l : layouts.emplace_back(layouts_of(plan, in, plan.slices[i]))) end += l.size;
    if (in.op == Op::kGate && in.gate == GateKind::kRecurrent)
      end = std::max(end, in.shared + recurrence::layout().size);
    weight_count = std::max(weight_count, end);
    most = std::max({most, in.in_channels * (in.columns ? in.taps : 1), in.bottleneck});
    first_step.push_back(steps);
    steps += 1 + in.inner_steps();
    if (in.op == Op::kConv2d && in.out_mask >= 0) chosen_bytes += 4 * in.in_channels * in.taps * in.out_channels;
    int64_t maps = 0;
    for (int64_t b : {in.src, in.dst})
      if (b >= 0) maps += 4 * plan.buffers[b].channels * plan.buffers[b].pixels();
    map_bytes.insert(map_bytes.end(), has(in.op, kLayered) ? in.layers : 1, maps);
    for (int64_t b : {in.src, in.guide})
      if (in.normalises() && b >= 0) normalised[b] = true;
  }
  every_channel.resize(most);
  std::iota(every_channel.begin(), every_channel.end(), 0);
  for (const BufferSpec& b : plan.buffers) {
    edges.emplace_back();
    for (int64_t t = 0; t < b.tiles(); ++t) edges.back().emplace_back(t * kTile, b.width);
  }
}

std::shared_ptr<const CompiledPlan> CompiledPlan::get(const char* op, const int64_t* words, int64_t count,
                                                      const BufferSpec& image, int64_t weight_count) {
  static auto* cache = new MostRecent<CompiledPlan>;  // outlives every thread
  auto made = cache->get({}, words, count, [&] { return std::make_shared<const CompiledPlan>(op, words, count); });
  made->plan.check_image(op, image);
  check(made->weight_count <= weight_count, op, ": weights hold ", weight_count, " floats, the plan needs ",
        made->weight_count, "; pack them anew");
  return made;
}

}  // namespace dsn::cpu
