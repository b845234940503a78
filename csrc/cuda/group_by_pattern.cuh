// Samples with equal gates side by side, groups in the order of their first member, members in order: so that blocks
// that walk them gather the weights of the filters that are on once for all of a group.
#pragma once

#include "cuda/element.cuh"

namespace dsn::cuda {

struct GroupParams {
  const uint8_t* gates;  // [B][L]; 0 and anything else
  int32_t* first;        // [B] scratch: the first sample with equal gates
  int64_t* order;        // [B] samples, group after group
  int32_t batch, layers;
};

// Every thread compares its row with those before it: rows that differ do so within a few bytes, and the rows of a
// batch stay in the nearest cache.
static __global__ void __launch_bounds__(kThreads) first_equal_kernel(const __grid_constant__ GroupParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= p.batch) return;
  const uint8_t* own = p.gates + static_cast<int64_t>(i) * p.layers;
  int j = 0;
  for (; j < i; ++j) {
    const uint8_t* other = p.gates + static_cast<int64_t>(j) * p.layers;
    int l = 0;
    while (l < p.layers && (own[l] != 0) == (other[l] != 0)) ++l;
    if (l == p.layers) break;
  }
  p.first[i] = j;
}

// A group is smaller than another if its first member is, so all ranks are counts over `first`.
static __global__ void __launch_bounds__(kThreads) place_kernel(const __grid_constant__ GroupParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  int32_t* staged = shared_memory<int32_t>();  // [kThreads]
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const int own = i < p.batch ? p.first[i] : -1;
  int64_t begin = 0, before = 0;
  for (int base = 0; base < p.batch; base += blockDim.x) {
    const int j = base + threadIdx.x;
    __syncthreads();
    if (j < p.batch) staged[threadIdx.x] = p.first[j];
    __syncthreads();
    const int count = min(static_cast<int>(blockDim.x), p.batch - base);
    for (int k = 0; k < count; ++k) {
      const int first = staged[k];
      begin += first < own;
      before += first == own && base + k < i;
    }
  }
  if (i < p.batch) p.order[begin + before] = i;
}

constexpr int kGroupBytes = kThreads * sizeof(int32_t);  // shared memory of place_kernel

}  // namespace dsn::cuda
