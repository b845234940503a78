// The filters that each mask of a plan chose, as lists: the whole batch's, made once, when the masks are known.
#pragma once

#include "cuda/routing.cuh"

namespace dsn::cuda {

// A block per sample, a warp per mask.
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
  for (int m = threadIdx.x / 32; m < p.count; m += kThreadCount / 32) {
    const uint8_t* mask = p.masks + row + p.mask[m].first;
    uint16_t* list = p.lists + row + p.mask[m].first;
    int count = 0;
    for (int first = 0; first < p.mask[m].length; first += 32) {
      const int i = first + lane;
      const bool chosen = i < p.mask[m].length && mask[i] != 0;
      const unsigned chosen_lanes = __ballot_sync(kAllLanes, chosen);
      if (chosen) list[count + __popc(chosen_lanes & ((1u << lane) - 1))] = static_cast<uint16_t>(i);
      count += __popc(chosen_lanes);
    }
    if (lane == 0) p.counts[static_cast<int64_t>(sample) * p.count_stride + p.first_mask + m] = count;
  }
}

}  // namespace dsn::cuda
