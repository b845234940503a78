// Kernels with one fault each, for the tests of the tester.
#include "cuda/ptx.cuh"
#include "simt/bindings.h"

namespace dsn::simt::bindings {
namespace {

using cuda::LaunchConfig;
using cuda::shared_memory;

struct Params {
  float* out;       // [n]
  const float* in;  // [n]
  int n;
};

__device__ inline int thread() { return static_cast<int>(threadIdx.x); }

template <auto kKernel>
void start(Buffer out, Buffer in, int threads, int blocks = 1, int cluster = 1, bool dependent = false) {
  LaunchConfig config;
  config.grid = blocks;
  config.block = threads;
  config.cluster = cluster;
  config.dependent = dependent;
  config.shared_bytes = threads * static_cast<int>(sizeof(float));
  check(cuda::launch<kKernel>(config, Params{out.data<float>(), in.data<float>(), static_cast<int>(in.size<float>())}));
}

__global__ void missing_barrier_kernel(const __grid_constant__ Params p) {
  float* staged = shared_memory<float>();
  staged[thread()] = p.in[thread()];
  p.out[thread()] = staged[p.n - 1 - thread()];
}

__global__ void missing_warp_barrier_kernel(const __grid_constant__ Params p) {
  float* staged = shared_memory<float>();
  staged[thread()] = p.in[thread()];
  p.out[thread()] = staged[thread() ^ 1];
}

__global__ void missing_second_barrier_kernel(const __grid_constant__ Params p) {
  float* staged = shared_memory<float>();
  float sum = 0;
  for (int i = 0; i < 2; ++i) {
    staged[thread()] = p.in[thread()] + static_cast<float>(i);  // while others still read the last round's
    __syncthreads();
    sum += staged[p.n - 1 - thread()];
  }
  p.out[thread()] = sum;
}

__global__ void shared_race_kernel(const __grid_constant__ Params p) {
  float* sum = shared_memory<float>();
  if (thread() == 0) *sum = 0;
  __syncthreads();
  *sum += p.in[thread()];
  __syncthreads();
  p.out[thread()] = *sum;
}

__global__ void block_race_kernel(const __grid_constant__ Params p) { p.out[thread()] = p.in[thread()]; }

__global__ void off_by_one_kernel(const __grid_constant__ Params p) { p.out[thread()] = p.in[thread() + 1]; }

__global__ void shared_off_by_one_kernel(const __grid_constant__ Params p) {
  float* staged = shared_memory<float>();
  staged[thread() + 1] = p.in[thread()];
}

__global__ void writes_input_kernel(const __grid_constant__ Params p) { const_cast<float*>(p.in)[thread()] = 0; }

__global__ void misaligned_kernel(const __grid_constant__ Params p) {
  const float4 four = *reinterpret_cast<const float4*>(p.in + 1);
  p.out[thread()] = four.x;
}

__global__ void local_overflow_kernel(const __grid_constant__ Params p) {
  float values[4] = {1, 2, 3, 4};
  p.out[thread()] = values[p.n];
}

__global__ void divergent_barrier_kernel(const __grid_constant__ Params p) {
  if (thread() < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  p.out[thread()] = 0;
}

__global__ void absent_barrier_kernel(const __grid_constant__ Params p) {
  if (thread() < 32) ptx::cluster_sync();
  if (thread() >= 32) __syncthreads();
  p.out[thread()] = 0;
}

__global__ void absent_lane_kernel(const __grid_constant__ Params p) {
  if (thread() == 7) return;
  p.out[thread()] = __shfl_xor_sync(0xffffffffu, p.in[thread()], 1);
}

__global__ void divergent_warp_kernel(const __grid_constant__ Params p) {
  if (thread() % 2) {
    p.out[thread()] = __shfl_xor_sync(0xffffffffu, p.in[thread()], 2);
  } else {
    p.out[thread()] = static_cast<float>(__ballot_sync(0xffffffffu, 1));
  }
}

__global__ void missing_wait_kernel(const __grid_constant__ Params p) {
  float* staged = shared_memory<float>();
  ptx::cp_async<4>(ptx::shared_address(staged + thread()), p.in + thread());
  ptx::cp_async_commit();
  p.out[thread()] = staged[thread()];
}

__global__ void wait_without_barrier_kernel(const __grid_constant__ Params p) {
  float* staged = shared_memory<float>();
  ptx::cp_async<4>(ptx::shared_address(staged + thread()), p.in + thread());
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  p.out[thread()] = staged[p.n - 1 - thread()];
}

__global__ void early_end_kernel(const __grid_constant__ Params p) {
  float* mine = shared_memory<float>();
  mine[thread()] = p.in[thread()];
  ptx::cluster_sync();
  if (blockIdx.x == 0) {
    for (int i = 0; i < 4; ++i) __syncthreads();  // the other block ends meanwhile, under some order of warps
    p.out[thread()] = *ptx::map_shared(mine + thread(), 1);
  }
}

__global__ void misaligned_copy_kernel(const __grid_constant__ Params p) {
  float* staged = shared_memory<float>();
  ptx::cp_async<8>(ptx::shared_address(staged + thread()), p.in);
}

__global__ void copy_kernel(const __grid_constant__ Params p) {
  ptx::grid_dependency_wait();
  p.out[thread()] = p.in[thread()];
}

__global__ void missing_dependency_wait_kernel(const __grid_constant__ Params p) { p.out[thread()] = p.in[thread()]; }

// Half of the blocks have nothing to do and leave, without waiting for the kernels ahead.
__global__ void leaves_without_waiting_kernel(const __grid_constant__ Params p) {
  if (blockIdx.x % 2) return;
  ptx::grid_dependency_wait();
  p.out[thread()] = p.in[thread()];
}

}  // namespace

#define DSN_BROKEN(name, ...)                                                            \
  void name(Buffer out, Buffer in) { start<name##_kernel>(out, in, 64, ##__VA_ARGS__); } \
  DSN_SIMT_BIND(name)

DSN_BROKEN(missing_barrier);
DSN_BROKEN(missing_warp_barrier);
DSN_BROKEN(missing_second_barrier);
DSN_BROKEN(shared_race);
DSN_BROKEN(block_race, 2);
DSN_BROKEN(off_by_one);
DSN_BROKEN(shared_off_by_one);
DSN_BROKEN(writes_input);
DSN_BROKEN(misaligned);
DSN_BROKEN(local_overflow);
DSN_BROKEN(divergent_barrier);
DSN_BROKEN(absent_barrier);
DSN_BROKEN(absent_lane);
DSN_BROKEN(divergent_warp);
DSN_BROKEN(missing_wait);
DSN_BROKEN(wait_without_barrier);
DSN_BROKEN(early_end, 2, 2);
DSN_BROKEN(misaligned_copy);
DSN_BROKEN(copy, 1, 1, true);
DSN_BROKEN(leaves_without_waiting, 2, 1, true);
DSN_BROKEN(missing_dependency_wait, 1, 1, true);

void plain_copy(Buffer out, Buffer in) { start<copy_kernel>(out, in, 64); }
DSN_SIMT_BIND(plain_copy);

void too_many_threads(Buffer out, Buffer in) { start<copy_kernel>(out, in, 1056); }
DSN_SIMT_BIND(too_many_threads);

}  // namespace dsn::simt::bindings
