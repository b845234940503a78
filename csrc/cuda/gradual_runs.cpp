#include <algorithm>
#include <utility>

#include "cuda/runs.h"

namespace dsn::cuda {
namespace {

bool is_conv(const Instruction& in, int64_t taps, int64_t src, int64_t flags) {
  return in.op == Op::kConv2d && in.taps == taps && in.stride == 1 && in.src == src && in.src_offset == 0 &&
         in.flags == flags && in.only_if < 0 && in.out_mask < 0 && in.in_mask < 0;
}

// The update unit that begins at an instruction: 1x1 of all channels with ReLU, 3x3 with ReLU and 1x1, whose result and
// the shortcut's, which is the rest of the first, are added to the first's input. No segments: it is none.
GradualRun unit_at(const Plan& plan, size_t i) {
  const std::vector<Instruction>& code = plan.code;
  if (i + 2 >= code.size()) return {};
  const Instruction &first = code[i], &conv = code[i + 1], &last = code[i + 2];
  const int64_t width = conv.in_channels;
  if (!is_conv(first, 1, first.src, kRelu) || first.in_channels != plan.buffers[first.src].channels ||
      first.out_offset != 0 || !is_conv(conv, 9, first.dst, kRelu) || conv.relu_channels != 0 || conv.out_offset != 0 ||
      conv.out_channels != width || last.in_channels != width)
    return {};
  GradualRun run;
  run.begin = static_cast<int>(i);
  run.segments.push_back({run.begin, run.begin + 1, run.begin + 2, -1});
  if (!is_conv(last, 1, conv.dst, kAccumulate)) return {};
  if (last.dst == first.src && first.out_channels == width && first.relu_channels == 0) {
    run.end = run.begin + 3;
    return run;
  }
  if (i + 3 >= code.size()) return {};
  const Instruction& add = code[i + 3];
  const bool whole = last.dst == first.dst && last.out_offset == width && first.relu_channels == width &&
                     first.out_channels == width + last.out_channels && add.op == Op::kAdd && add.src == first.dst &&
                     add.dst == first.src && add.src_offset == width && add.in_channels == last.out_channels;
  if (!whole) return {};
  run.segments.back().add = run.begin + 3;
  run.end = run.begin + 4;
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

bool place(GradualRun& run, const Plan& plan, Element element, const DeviceLimits& limits) {
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
  return at <= limits.shared_bytes;
}

}  // namespace

std::vector<GradualRun> find_gradual_runs(const Plan& plan, Element element, int64_t batch,
                                          const DeviceLimits& limits) {
  std::vector<GradualRun> runs;
  for (size_t i = 0; i < plan.code.size();) {
    GradualRun run = unit_at(plan, i);
    if (run.segments.empty()) {
      ++i;
      continue;
    }
    while (run.segments.size() < kGradualSegments) {
      const GradualRun next = unit_at(plan, static_cast<size_t>(run.end));
      if (next.segments.empty() || plan.code[next.begin].src != plan.code[run.begin].src) break;
      run.segments.push_back(next.segments.front());
      run.end = next.end;
    }
    i = static_cast<size_t>(run.end);
    if (!keeps_to_itself(plan, run)) continue;
    const int64_t height = plan.buffers[plan.code[run.begin].src].height;
    const GradualRun best =
        cut_rows(height, batch, limits, run, [&](GradualRun& r) { return place(r, plan, element, limits); });
    if (best.rows) runs.push_back(best);
  }
  return runs;
}

}  // namespace dsn::cuda
