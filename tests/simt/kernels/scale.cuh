// The smallest whole example: a kernel and its launcher.
#pragma once

#include "cuda/ptx.cuh"

namespace dsn::cuda {

struct ScaleParams {
  float* out;       // [n]
  const float* in;  // [n]
  float factor;
  int n;
};

// out = factor in, reversed within each block's piece: every thread writes what another one staged.
template <int kThreads>
__global__ void __launch_bounds__(kThreads) scale_kernel(const __grid_constant__ ScaleParams p) {
  float* staged = shared_memory<float>();  // [kThreads]
  const int first = static_cast<int>(blockIdx.x) * kThreads;
  const int thread = static_cast<int>(threadIdx.x);
  const int size = min(kThreads, p.n - first);
  if (thread < size) staged[thread] = p.in[first + thread];
  __syncthreads();
  if (thread < size) p.out[first + thread] = p.factor * staged[size - 1 - thread];
}

inline cudaError_t launch_scale(const ScaleParams& p, cudaStream_t stream) {
  constexpr int kThreads = 128;
  LaunchConfig config;
  config.grid = (p.n + kThreads - 1) / kThreads;
  config.block = kThreads;
  config.shared_bytes = kThreads * sizeof(float);
  config.stream = stream;
  return launch<scale_kernel<kThreads>>(config, p);
}

}  // namespace dsn::cuda
