// Which filters each mask of a plan chose and which channels of a buffer hold data, as lists: the whole batch's, made
// when their masks are known.
#pragma once

#include "cuda/routing.cuh"

namespace dsn::cuda {

// A block per sample, a warp per list.
template <int kThreadCount>
__global__ void __launch_bounds__(kThreadCount) filter_lists_kernel(const __grid_constant__ FilterListsParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int sample = pick_sample(p.samples, blockIdx.x), lane = threadIdx.x % 32;
  if (sample < 0) return;
  const int64_t row = static_cast<int64_t>(sample) * p.gates;
  for (int i = threadIdx.x; p.taken && i < p.gates; i += kThreadCount) {
    p.taken[row + i] = p.masks[row + i];
    p.score[row + i] = 0;
  }
  const uint8_t* masks = p.masks + row;
  for (int l = threadIdx.x / 32; l < p.count; l += kThreadCount / 32) {
    uint16_t* list = p.lists + static_cast<int64_t>(sample) * p.list_stride + p.list[l].at;
    int32_t* counts = p.counts + static_cast<int64_t>(sample) * p.count_stride + p.list[l].first_count;
    int count = 0, channel = 0;
    for (int r = 0; r < p.list[l].ranges; ++r) {
      const ChannelRange& range = p.range[p.list[l].first_range + r];
      for (int first = 0; first < range.channels; first += 32) {
        const int i = first + lane;
        const bool chosen = i < range.channels && (range.gate < 0 || masks[range.gate + i] != 0) &&
                            (range.both < 0 || masks[range.both + i] != 0);
        const unsigned chosen_lanes = __ballot_sync(kAllLanes, chosen);
        if (chosen) list[count + __popc(chosen_lanes & ((1u << lane) - 1))] = static_cast<uint16_t>(channel + i);
        count += __popc(chosen_lanes);
      }
      channel += range.channels;
      if (lane == 0) counts[r] = count;
    }
  }
}

}  // namespace dsn::cuda
