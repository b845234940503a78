#include <algorithm>
#include <utility>

#include "cuda/runs.h"

namespace dsn::cuda {
namespace {

// A convolution between two maps of one size that reads a whole buffer and writes all filters that are on.
bool is_conv(const Plan& plan, const Instruction& in, int64_t taps, int64_t in_mask, int64_t flags,
             Activation activation) {
  return in.op == Op::kConv2d && in.taps == taps && in.stride == 1 && !in.columns && in.only_if < 0 && in.groups == 1 &&
         in.activation == activation && in.activated == 0 && in.src_offset == 0 && in.out_offset == 0 &&
         in.in_mask == in_mask && (in.flags & ~kLive) == flags && in.in_channels == plan.buffers[in.src].channels &&
         in.out_channels == plan.buffers[in.dst].channels;
}

// Whether a launch can walk a unit: BN-ReLU-1x1, 3x3 and 1x1, whose result is added to the first's input.
bool is_unit(const Plan& plan, const Region& region) {
  if (region.end - region.begin != 3) return false;
  const Instruction* unit = &plan.code[region.begin];
  const Instruction &first = unit[0], &conv = unit[1], &last = unit[2];
  return is_conv(plan, first, 1, -1, kNormalise, Activation::kRelu) && !(first.flags & kLive) &&
         is_conv(plan, conv, 9, first.out_mask, 0, Activation::kRelu) &&
         is_conv(plan, last, 1, conv.out_mask, kAccumulate, Activation::kIdentity) && conv.src == first.dst &&
         last.src == conv.dst && last.dst == first.src && conv.in_channels == conv.out_channels;
}

// Whether nothing behind a run reads what its units keep to themselves.
bool keeps_to_itself(const Plan& plan, const BottleneckRun& run) {
  return !is_read_from(plan, plan.code[run.begin].dst, run.end) &&
         !is_read_from(plan, plan.code[run.begin + 1].dst, run.end);
}

bool place(const Plan& plan, const BottleneckRun& run, BottleneckCut& cut, Element element, const Machine& machine) {
  const BufferSpec& map = plan.buffers[plan.code[run.begin].src];
  const int64_t width = plan.code[run.begin].out_channels, deep = round_up(width, kStep);
  const int64_t channels = round_up(map.channels, kStep), bytes = bytes_of(element), pixels = cut.rows * map.width;
  cut.state_stride = cell_stride(channels, element);
  cut.width_stride = cell_stride(deep, element);
  cut.list_row = static_cast<int>(2 * round_up(width, kListPiece) + round_up(map.channels, kListPiece));
  int64_t at = kHeaderBytes;
  auto reserve = [&](int64_t n) { return static_cast<int>(std::exchange(at, round_up(at + n, 16))); };
  cut.at_counts = reserve(int64_t{run.units()} * 3 * 4);
  cut.at_lists = reserve(int64_t{run.units()} * cut.list_row * 2);
  cut.at_norm = reserve(2 * channels * bytes);
  cut.at_parts = reserve(kStageThreads * kBottleneckTiles * 4 * 4);
  cut.at_state = reserve(pixels * cut.state_stride * bytes);
  cut.at_inner = reserve(pixels * cut.width_stride * bytes);
  for (int32_t& frame : cut.at_mid) frame = reserve((cut.rows + 2) * (map.width + 2) * cut.width_stride * bytes);
  const int64_t filters[3] = {width, width, map.channels};
  const int64_t rows[3] = {channels / kGroup, 9 * deep / kGroup, deep / kGroup};
  for (int conv = 0; conv < 3; ++conv) {
    cut.pitch[conv] = static_cast<int>(round_up(filters[conv], 8) * kGroup + kConvPadding);
    cut.at_bias[conv] = reserve(round_up(filters[conv], 8) * 4);
    cut.at_weights[conv] = reserve(rows[conv] * cut.pitch[conv] * bytes);
  }
  cut.shared_bytes = static_cast<int>(at);
  return at <= machine.shared_bytes;
}

}  // namespace

std::vector<BottleneckRun> find_bottleneck_runs(const Plan& plan, Element element, int64_t batch,
                                                const Machine& machine) {
  std::vector<BottleneckRun> runs;
  if (machine.cluster == 1) return runs;
  const std::vector<Region> units = regions_of(plan, RegionKind::kBottleneckUnit);
  for (size_t u = 0; u < units.size();) {
    if (!is_unit(plan, units[u])) {
      ++u;
      continue;
    }
    BottleneckRun run;
    run.begin = run.end = static_cast<int>(units[u].begin);
    const Instruction* first = &plan.code[run.begin];
    for (; u < units.size() && units[u].begin == run.end && run.units() < kBottleneckUnits; ++u) {
      const Instruction* unit = &plan.code[run.end];
      if (!is_unit(plan, units[u]) || unit->src != first->src || unit->dst != first->dst || unit[1].dst != first[1].dst)
        break;
      run.end += 3;
    }
    if (!keeps_to_itself(plan, run)) continue;
    run.cut = cut_rows(plan.buffers[first->src].height, batch, machine, run.cut,
                       [&](BottleneckCut& cut) { return place(plan, run, cut, element, machine); });
    if (run.cut.rows) runs.push_back(run);
  }
  return runs;
}

}  // namespace dsn::cuda
