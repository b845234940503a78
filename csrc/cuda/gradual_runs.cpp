#include <algorithm>
#include <utility>

#include "cuda/runs.h"

namespace dsn::cuda {
namespace {

bool is_conv(const Instruction& in, int64_t taps, int64_t src, int64_t flags, Activation activation) {
  return in.op == Op::kConv2d && in.taps == taps && in.stride == 1 && !in.columns && in.groups == 1 && in.src == src &&
         in.src_offset == 0 && in.flags == flags && in.activation == activation && in.only_if < 0 && in.out_mask < 0 &&
         in.in_mask < 0;
}

// A unit that a launch can walk: 1x1 of all channels with ReLU, 3x3 with ReLU and 1x1, whose result and the shortcut's,
// which is the rest of the first, are added to the first's input. No segments: it cannot.
GradualRun update_unit(const Plan& plan, const Region& region) {
  const int64_t count = region.end - region.begin;
  if (count != 3 && count != 4) return {};
  const Instruction* unit = &plan.code[region.begin];
  const Instruction &first = unit[0], &conv = unit[1], &last = unit[2], &add = unit[count - 1];
  const int64_t width = conv.in_channels, shortcut = count == 4;
  if (!is_conv(first, 1, first.src, 0, Activation::kRelu) || first.in_channels != plan.buffers[first.src].channels ||
      first.out_offset != 0 || first.out_channels != width + shortcut * last.out_channels ||
      first.activated != shortcut * width || !is_conv(conv, 9, first.dst, 0, Activation::kRelu) ||
      conv.activated != 0 || conv.out_offset != 0 || conv.out_channels != width || last.in_channels != width ||
      !is_conv(last, 1, conv.dst, kAccumulate, Activation::kIdentity) || last.dst != (shortcut ? first.dst : first.src))
    return {};
  const bool adds = add.op == Op::kPointwise && add.flags == kAccumulate && add.factor < 0 &&
                    add.activation == Activation::kIdentity && add.only_if < 0;
  if (shortcut && (last.out_offset != width || !adds || add.src != first.dst || add.dst != first.src ||
                   add.src_offset != width || add.in_channels != last.out_channels))
    return {};
  GradualRun run;
  run.begin = static_cast<int>(region.begin), run.end = static_cast<int>(region.end);
  run.segments.push_back({run.begin, run.begin + 1, run.begin + 2, shortcut ? run.begin + 3 : -1});
  return run;
}

// Whether the buffers between a run's convolutions are read by nothing else.
bool keeps_to_itself(const Plan& plan, const GradualRun& run) {
  for (int i = run.begin; i < run.end; ++i) {
    const int64_t between = plan.code[i].dst;
    if (between != plan.code[run.begin].src && is_read_from(plan, between, run.end)) return false;
  }
  return true;
}

bool place(GradualRun& run, const Plan& plan, Element element, const Machine& machine) {
  const BufferSpec& map = plan.buffers[plan.code[run.begin].src];
  int64_t width = 0, size = 0;
  for (const GradualRun::Segment& s : run.segments) {
    width = std::max(width, plan.code[s.conv].in_channels);
    size = std::max(size, plan.code[s.last].out_channels);
  }
  const int64_t bytes = bytes_of(element), pixels = run.rows * map.width;
  run.width_channels = static_cast<int>(round_up(width, kStep));
  run.state_stride = cell_stride(round_up(map.channels, kStep), element);
  run.width_stride = cell_stride(run.width_channels, element);
  run.add_stride = static_cast<int>(size);
  int64_t at = kHeaderBytes;
  auto reserve = [&](int64_t n) { return static_cast<int>(std::exchange(at, round_up(at + n, 16))); };
  run.at_state = reserve(pixels * run.state_stride * bytes);
  run.at_mid = reserve((run.rows + 2) * (map.width + 2) * run.width_stride * bytes);
  run.at_inner = reserve(pixels * run.width_stride * bytes);
  run.at_add = reserve(pixels * size * 4);
  run.shared_bytes = static_cast<int>(at);
  return at <= machine.shared_bytes;
}

}  // namespace

std::vector<GradualRun> find_gradual_runs(const Plan& plan, Element element, int64_t batch, const Machine& machine) {
  std::vector<GradualRun> runs;
  const std::vector<Region> units = regions_of(plan, RegionKind::kUpdateUnit);
  for (size_t u = 0; u < units.size();) {
    GradualRun run = update_unit(plan, units[u++]);
    if (run.segments.empty()) continue;
    for (; u < units.size() && run.segments.size() < kGradualSegments; ++u) {
      const GradualRun next = update_unit(plan, units[u]);
      if (next.segments.empty() || next.begin != run.end || plan.code[next.begin].src != plan.code[run.begin].src)
        break;
      run.segments.push_back(next.segments.front());
      run.end = next.end;
    }
    if (!keeps_to_itself(plan, run)) continue;
    const int64_t height = plan.buffers[plan.code[run.begin].src].height;
    const GradualRun best =
        cut_rows(height, batch, machine, run, [&](GradualRun& r) { return place(r, plan, element, machine); });
    if (best.rows) runs.push_back(best);
  }
  return runs;
}

}  // namespace dsn::cuda
