// group_by_pattern: samples with equal gates side by side, groups in the order of their first member, members in order.
#pragma once

#include "cuda/element.cuh"

namespace dsn::cuda {

struct GroupParams {
  const uint8_t* gates;  // [B][L]; 0 and anything else
  int32_t* first;        // [B] scratch: the first sample with equal gates
  int64_t* order;        // [B] samples, group after group
  int64_t* group;        // [B] of each sample, or null
  int64_t* offsets;      // [B + 1] where a group begins in `order`; B beyond the last; or null
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
  int64_t group = 0, begin = 0, before = 0, groups = 0;
  for (int base = 0; base < p.batch; base += blockDim.x) {
    const int j = base + threadIdx.x;
    __syncthreads();
    if (j < p.batch) staged[threadIdx.x] = p.first[j];
    __syncthreads();
    const int count = min(static_cast<int>(blockDim.x), p.batch - base);
    for (int k = 0; k < count; ++k) {
      const int first = staged[k];
      const bool leads = first == base + k;
      groups += leads;
      group += leads && first < own;
      begin += first < own;
      before += first == own && base + k < i;
    }
  }
  if (i >= p.batch) return;
  p.order[begin + before] = i;
  if (!p.group) return;
  p.group[i] = group;
  if (own == i) p.offsets[group] = begin;
  if (i >= groups) p.offsets[i] = p.batch;
  if (i == 0) p.offsets[p.batch] = p.batch;
}

constexpr int kGroupBytes = kThreads * sizeof(int32_t);  // shared memory of place_kernel

inline cudaError_t launch_group_by_pattern(const GroupParams& p, cudaStream_t stream) {
  LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>((p.batch + kThreads - 1) / kThreads));
  config.block = dim3(kThreads);
  config.stream = stream;
  const cudaError_t status = launch<first_equal_kernel>(config, p);
  if (status != cudaSuccess) return status;
  config.shared_bytes = kGroupBytes;
  return launch<place_kernel>(config, p);
}

}  // namespace dsn::cuda
