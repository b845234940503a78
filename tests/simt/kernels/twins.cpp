// Kernels that expose one instruction each, registers and all.
#include "cuda/ptx.cuh"
#include "simt/bindings.h"

namespace dsn::simt::bindings {
namespace {

using cuda::LaunchConfig;
using cuda::shared_memory;

__device__ inline int thread() { return static_cast<int>(threadIdx.x); }

template <auto kKernel, class Params>
void start(const Params& params, int threads, int shared_bytes = 0, int blocks = 1, int cluster = 1) {
  LaunchConfig config;
  config.grid = blocks;
  config.block = threads;
  config.cluster = cluster;
  config.shared_bytes = shared_bytes;
  check(cuda::launch<kKernel>(config, params));
}

// ---- mma: registers as they are, [lane][register] ----
struct MmaParams {
  float* d;           // [32][4]
  const uint32_t* a;  // [32][4]
  const uint32_t* b;  // [32][2]
};

enum class Mma { kHalf, kBfloat16 };

template <Mma kMma>
__global__ void mma_kernel(const __grid_constant__ MmaParams p) {
  float d[4];
  uint32_t a[4];
  uint32_t b[2];
  for (int i = 0; i < 4; ++i) d[i] = p.d[4 * thread() + i], a[i] = p.a[4 * thread() + i];
  for (int i = 0; i < 2; ++i) b[i] = p.b[2 * thread() + i];
  if constexpr (kMma == Mma::kHalf) ptx::mma_m16n8k16<__half>(d, a, b);
  if constexpr (kMma == Mma::kBfloat16) ptx::mma_m16n8k16<__nv_bfloat16>(d, a, b);
  for (int i = 0; i < 4; ++i) p.d[4 * thread() + i] = d[i];
}

// D = A B with A [16][16] and B [16][8] from memory; kSwapped exchanges a1 and a2, the usual mistake.
struct GemmParams {
  float* d;
  const __half* a;
  const __half* b;
};

template <bool kSwapped>
__global__ void gemm_kernel(const __grid_constant__ GemmParams p) {
  const int g = thread() / 4;
  const int t = thread() % 4;
  const auto pair = [](__half low, __half high) {
    return static_cast<uint32_t>(__half_as_ushort(high)) << 16 | __half_as_ushort(low);
  };
  uint32_t a[4];
  uint32_t b[2];
  for (int i = 0; i < 4; ++i) {
    const int row = g + 8 * (kSwapped ? i / 2 : i % 2);
    const int column = 2 * t + 8 * (kSwapped ? i % 2 : i / 2);
    a[i] = pair(p.a[16 * row + column], p.a[16 * row + column + 1]);
  }
  for (int i = 0; i < 2; ++i) b[i] = pair(p.b[8 * (2 * t + 8 * i) + g], p.b[8 * (2 * t + 8 * i + 1) + g]);
  float d[4] = {};
  ptx::mma_m16n8k16<__half>(d, a, b);
  for (int i = 0; i < 4; ++i) p.d[8 * (g + 8 * (i / 2)) + 2 * t + i % 2] = d[i];
}

// ---- asynchronous copies ----
struct CopyParams {
  uint32_t* out;       // words
  const uint32_t* in;  // words
  int n;
};

// A pipeline of three stages: 128 words each, copied two stages ahead of their use.
template <int kBytes>
__global__ void pipeline_kernel(const __grid_constant__ CopyParams p) {
  constexpr int kStages = 3;
  constexpr int kWords = 128;
  uint32_t* staged = shared_memory<uint32_t>();  // [kStages][kWords]
  const int tiles = (p.n + kWords - 1) / kWords;
  const auto copy = [&](int tile) {
    for (int i = thread() * kBytes; i < kWords * 4 && tile < tiles; i += 32 * kBytes) {
      const int left = 4 * p.n - (tile * kWords * 4 + i);
      const int bytes = left <= 0 ? 0 : left < kBytes ? left : kBytes;
      const unsigned char* source = reinterpret_cast<const unsigned char*>(p.in) + (bytes ? tile * kWords * 4 + i : 0);
      ptx::cp_async<kBytes>(ptx::shared_address(staged + tile % kStages * kWords) + i, source, bytes);
    }
    ptx::cp_async_commit();
  };
  for (int tile = 0; tile < kStages - 1; ++tile) copy(tile);
  for (int tile = 0; tile < tiles; ++tile) {
    ptx::cp_async_wait<kStages - 2>();
    __syncthreads();
    copy(tile + kStages - 1);
    for (int i = thread(); i < kWords; i += 32) {
      p.out[tile * kWords + i] = staged[tile % kStages * kWords + kWords - 1 - i];
    }
  }
}

// ---- clusters: every block reads its right neighbour's shared memory, writes its left one's, and adds to block 0 ----
__global__ void cluster_kernel(const __grid_constant__ CopyParams p) {
  uint32_t* mine = shared_memory<uint32_t>();  // [32] own, [32] received, [1] sum
  const uint32_t size = gridDim.x / 2;
  const uint32_t rank = blockIdx.x % size;
  const int at = static_cast<int>(blockIdx.x) * 32 + thread();
  mine[thread()] = p.in[at];
  if (thread() == 0) mine[64] = 0;
  ptx::cluster_sync();
  ptx::map_shared(mine + 32, (rank + size - 1) % size)[thread()] = mine[thread()];
  const uint32_t neighbour = *ptx::map_shared(mine + thread(), (rank + 1) % size);
  atomicAdd(ptx::map_shared(mine + 64, 0), neighbour);
  ptx::cluster_sync();
  const uint32_t received = mine[32 + thread()];
  p.out[at] = neighbour == received ? *ptx::map_shared(mine + 64, 0) + neighbour : 0;
  ptx::cluster_sync();  // block 0 stays until all have read its sum
}

}  // namespace

void mma_half(Buffer d, Buffer a, Buffer b) {
  start<mma_kernel<Mma::kHalf>>(MmaParams{d.data<float>(), a.data<uint32_t>(), b.data<uint32_t>()}, 32);
}
void mma_bfloat16(Buffer d, Buffer a, Buffer b) {
  start<mma_kernel<Mma::kBfloat16>>(MmaParams{d.data<float>(), a.data<uint32_t>(), b.data<uint32_t>()}, 32);
}
DSN_SIMT_BIND(mma_half);
DSN_SIMT_BIND(mma_bfloat16);

void gemm(Buffer d, Buffer a, Buffer b) {
  start<gemm_kernel<false>>(GemmParams{d.data<float>(), a.data<__half>(), b.data<__half>()}, 32);
}
void gemm_wrong_layout(Buffer d, Buffer a, Buffer b) {
  start<gemm_kernel<true>>(GemmParams{d.data<float>(), a.data<__half>(), b.data<__half>()}, 32);
}
DSN_SIMT_BIND(gemm);
DSN_SIMT_BIND(gemm_wrong_layout);

CopyParams copy_params(Buffer out, Buffer in) {
  return {out.data<uint32_t>(), in.data<uint32_t>(), static_cast<int>(in.size<uint32_t>())};
}
void pipeline_4(Buffer out, Buffer in) { start<pipeline_kernel<4>>(copy_params(out, in), 32, 1536); }
void pipeline_8(Buffer out, Buffer in) { start<pipeline_kernel<8>>(copy_params(out, in), 32, 1536); }
void pipeline_16(Buffer out, Buffer in) { start<pipeline_kernel<16>>(copy_params(out, in), 32, 1536); }
void cluster(Buffer out, Buffer in) {
  const int blocks = static_cast<int>(in.size<uint32_t>()) / 32;
  start<cluster_kernel>(copy_params(out, in), 32, 260, blocks, blocks / 2);
}
DSN_SIMT_BIND(pipeline_4);
DSN_SIMT_BIND(pipeline_8);
DSN_SIMT_BIND(pipeline_16);
DSN_SIMT_BIND(cluster);

}  // namespace dsn::simt::bindings
