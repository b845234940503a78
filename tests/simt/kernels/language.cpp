// Kernels that use what CUDA has beside C++: warp functions, reductions over a block, atomics, half intrinsics.
#include "cuda/device.cuh"
#include "simt/bindings.h"

namespace dsn::simt::bindings {
namespace {

using cuda::LaunchConfig;
using cuda::shared_memory;

struct Params {
  int* out;
  const int* in;
};

__device__ inline int thread() { return static_cast<int>(threadIdx.x); }

// [32][kWarpResults]: what every lane got
constexpr int kWarpResults = 16;
__global__ void warp_functions_kernel(const __grid_constant__ Params p) {
  constexpr unsigned kAll = 0xffffffffu;
  const int value = p.in[thread()];
  int* out = p.out + kWarpResults * thread();
  out[0] = __shfl_sync(kAll, value, 5);
  out[1] = __shfl_sync(kAll, value, thread() + 3, 8);
  out[2] = __shfl_up_sync(kAll, value, 3);
  out[3] = __shfl_down_sync(kAll, value, 3, 16);
  out[4] = __shfl_xor_sync(kAll, value, 9);
  out[5] = static_cast<int>(__ballot_sync(kAll, value > 0));
  out[6] = __any_sync(kAll, value > 1000);
  out[7] = __all_sync(kAll, value > -1000);
  out[8] = static_cast<int>(__match_any_sync(kAll, value));
  out[9] = __reduce_add_sync(kAll, value);
  out[10] = __reduce_min_sync(kAll, value);
  out[11] = __reduce_max_sync(kAll, value);
  out[12] = static_cast<int>(__reduce_xor_sync(kAll, static_cast<unsigned>(value)));
  const unsigned half = thread() < 16 ? 0x0000ffffu : 0xffff0000u;  // two masks at a time
  out[13] = thread() % 2 ? value : -value;
  if (thread() < 16) {
    out[14] = __reduce_add_sync(half, value);
  } else {
    out[14] = __shfl_xor_sync(half, value, 1);
  }
  __syncwarp();
  out[15] = static_cast<int>(__shfl_xor_sync(kAll, static_cast<double>(value) / 2, 1) * 2);
}

__global__ void block_functions_kernel(const __grid_constant__ Params p) {
  int* out = p.out + 3 * thread();
  const int value = p.in[thread()];
  out[0] = __syncthreads_count(value > 0);
  out[1] = __syncthreads_and(value > -1000);
  out[2] = __syncthreads_or(value > 1000);
}

// out: add, sub, max, min, or, and, xor, exch (of the last), inc, compare-and-swap sum
__global__ void atomics_kernel(const __grid_constant__ Params p) {
  const int value = p.in[blockIdx.x * blockDim.x + threadIdx.x];
  atomicAdd(p.out, value);
  atomicSub(p.out + 1, value);
  atomicMax(p.out + 2, value);
  atomicMin(p.out + 3, value);
  atomicOr(p.out + 4, value);
  atomicAnd(p.out + 5, value);
  atomicXor(p.out + 6, value);
  atomicExch(p.out + 7, 7);
  atomicInc(reinterpret_cast<unsigned*>(p.out + 8), 9);
  int seen = p.out[9] * 0;
  for (int before; (before = atomicCAS(p.out + 9, seen, seen + value)) != seen;) seen = before;
  int* sum = shared_memory<int>();
  if (thread() == 0) *sum = 0;
  __syncthreads();
  atomicAdd(sum, value);
  __syncthreads();
  if (thread() == 0) atomicAdd(p.out + 10, *sum);
}

struct HalfParams {
  float* out;       // [n][6]
  const float* in;  // [n][3]
};
__global__ void half_functions_kernel(const __grid_constant__ HalfParams p) {
  const float* in = p.in + 3 * thread();
  float* out = p.out + 6 * thread();
  const __half2 a = __float2half2_rn(in[0]);
  const __half2 b = __float2half2_rn(in[1]);
  const __half2 c = __float2half2_rn(in[2]);
  out[0] = __low2float(__hfma2(a, b, c));
  out[1] = __high2float(__hfma2_relu(a, b, c));
  out[2] = __half2float(__hadd(__low2half(a), __low2half(b)));
  const __nv_bfloat162 x = __float2bfloat162_rn(in[0]);
  const __nv_bfloat162 y = __float2bfloat162_rn(in[1]);
  const __nv_bfloat162 z = __float2bfloat162_rn(in[2]);
  out[3] = __low2float(__hfma2(x, y, z));
  out[4] = __high2float(__hfma2_relu(x, y, z));
  out[5] = __low2float(__hmax2(x, y));
}

// Writes the number of its block, warp and lane in the order in which they come.
__global__ void order_kernel(const __grid_constant__ Params p) {
  const int place = atomicAdd(p.out, 1);
  p.out[1 + place] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

// Block b skips if in[b] is 0: reads its word and nothing more.
__global__ void skipping_kernel(const __grid_constant__ Params p) {
  if (p.in[blockIdx.x] == 0) return;
  p.out[blockIdx.x * blockDim.x + threadIdx.x] = 1;
}

template <auto kKernel, class P>
void start(const P& params, int blocks, int threads) {
  LaunchConfig config;
  config.grid = blocks;
  config.block = threads;
  config.shared_bytes = 4;
  check(cuda::launch<kKernel>(config, params));
}

Params params(Buffer out, Buffer in) { return {out.data<int>(), in.data<int>()}; }

}  // namespace

void warp_functions(Buffer out, Buffer in) { start<warp_functions_kernel>(params(out, in), 1, 32); }
void block_functions(Buffer out, Buffer in) {
  start<block_functions_kernel>(params(out, in), 1, static_cast<int>(in.size<int>()));
}
void atomics(Buffer out, Buffer in, int blocks) {
  start<atomics_kernel>(params(out, in), blocks, static_cast<int>(in.size<int>()) / blocks);
}
void half_functions(Buffer out, Buffer in) {
  start<half_functions_kernel>(HalfParams{out.data<float>(), in.data<float>()}, 1,
                               static_cast<int>(in.size<float>()) / 3);
}
void order(Buffer out, int blocks, int threads) { start<order_kernel>(params(out, {}), blocks, threads); }
void skipping(Buffer out, Buffer in) { start<skipping_kernel>(params(out, in), static_cast<int>(in.size<int>()), 64); }
DSN_SIMT_BIND(warp_functions);
DSN_SIMT_BIND(block_functions);
DSN_SIMT_BIND(atomics);
DSN_SIMT_BIND(half_functions);
DSN_SIMT_BIND(order);
DSN_SIMT_BIND(skipping);

}  // namespace dsn::simt::bindings
