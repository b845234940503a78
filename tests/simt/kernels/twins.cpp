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

enum class Mma { kHalf, kBfloat16, kTf32 };

template <Mma kMma>
__global__ void mma_kernel(const __grid_constant__ MmaParams p) {
  float d[4];
  uint32_t a[4];
  uint32_t b[2];
  for (int i = 0; i < 4; ++i) d[i] = p.d[4 * thread() + i], a[i] = p.a[4 * thread() + i];
  for (int i = 0; i < 2; ++i) b[i] = p.b[2 * thread() + i];
  if constexpr (kMma == Mma::kHalf) ptx::mma_m16n8k16<__half>(d, a, b);
  if constexpr (kMma == Mma::kBfloat16) ptx::mma_m16n8k16<__nv_bfloat16>(d, a, b);
  if constexpr (kMma == Mma::kTf32) ptx::mma_m16n8k8_tf32(d, a, b);
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

struct ConvertParams {
  uint32_t* out;
  const float* in;
};
__global__ void to_tf32_kernel(const __grid_constant__ ConvertParams p) {
  p.out[thread()] = ptx::to_tf32(p.in[thread()]);
}

// ---- ldmatrix: every lane's address and what it receives ----
struct LdmatrixParams {
  uint32_t* r;         // [32][4]
  const uint32_t* in;  // [512] words of shared memory
  const int* offsets;  // [32] bytes
};

template <int kMatrices, bool kTransposed>
__global__ void ldmatrix_kernel(const __grid_constant__ LdmatrixParams p) {
  uint32_t* words = shared_memory<uint32_t>();
  for (int i = thread(); i < 512; i += 32) words[i] = p.in[i];
  __syncthreads();
  uint32_t r[kMatrices];
  const uint32_t address = ptx::shared_address(words) + p.offsets[thread()];
  if constexpr (kMatrices == 1) ptx::ldmatrix_x1<kTransposed>(r, address);
  if constexpr (kMatrices == 2) ptx::ldmatrix_x2<kTransposed>(r, address);
  if constexpr (kMatrices == 4) ptx::ldmatrix_x4<kTransposed>(r, address);
  for (int i = 0; i < kMatrices; ++i) p.r[4 * thread() + i] = r[i];
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

// Warp 0 produces by bulk copies, the others consume; full and empty barriers, two stages.
__global__ void bulk_pipeline_kernel(const __grid_constant__ CopyParams p) {
  constexpr int kStages = 2;
  constexpr int kWords = 64;
  uint32_t* staged = shared_memory<uint32_t>();  // [kStages][kWords], then the barriers
  const uint32_t full = ptx::shared_address(staged + kStages * kWords);
  const uint32_t empty = full + 8 * kStages;
  const int tiles = p.n / kWords;
  if (thread() == 0) {
    for (int i = 0; i < kStages; ++i) {
      ptx::mbarrier_init(full + 8 * i, 1);
      ptx::mbarrier_init(empty + 8 * i, 64);
    }
    ptx::fence_mbarrier_init();
  }
  __syncthreads();
  if (thread() < 32) {
    for (int tile = 0; tile < tiles && thread() == 0; ++tile) {
      const int stage = tile % kStages;
      if (tile >= kStages) ptx::mbarrier_wait(empty + 8 * stage, (tile / kStages - 1) % 2);
      ptx::mbarrier_arrive_expect_tx(full + 8 * stage, 4 * kWords);
      ptx::bulk_load(ptx::shared_address(staged + stage * kWords), p.in + tile * kWords, 4 * kWords, full + 8 * stage);
    }
    return;
  }
  for (int tile = 0; tile < tiles; ++tile) {
    const int stage = tile % kStages;
    ptx::mbarrier_wait(full + 8 * stage, tile / kStages % 2);
    p.out[tile * kWords + thread() - 32] = staged[stage * kWords + 95 - thread()];
    ptx::mbarrier_arrive(empty + 8 * stage);
  }
}

// cp.async whose landing arrives at an mbarrier.
__global__ void copy_arrive_kernel(const __grid_constant__ CopyParams p) {
  uint32_t* staged = shared_memory<uint32_t>();
  const uint32_t barrier = ptx::shared_address(staged + 64);
  if (thread() == 0) ptx::mbarrier_init(barrier, 64);
  __syncthreads();
  ptx::cp_async<4>(ptx::shared_address(staged + thread()), p.in + thread());
  ptx::cp_async_mbarrier_arrive(barrier);
  ptx::mbarrier_wait(barrier, 0);
  p.out[thread()] = staged[63 - thread()];
}

__global__ void bulk_store_kernel(const __grid_constant__ CopyParams p) {
  uint32_t* staged = shared_memory<uint32_t>();
  staged[thread()] = p.in[thread()] + 1;
  ptx::fence_proxy_async();
  __syncthreads();
  if (thread() == 0) {
    ptx::bulk_store(p.out, ptx::shared_address(staged), 4 * p.n);
    ptx::bulk_commit();
    ptx::bulk_wait<0>();
  }
}

// Warp 1 hands to warp 2 through named barriers, warp 0 takes no part.
__global__ void named_barrier_kernel(const __grid_constant__ CopyParams p) {
  uint32_t* staged = shared_memory<uint32_t>();
  const int warp = thread() / 32;
  const int lane = thread() % 32;
  for (int i = 0; i < p.n / 32 && warp > 0; ++i) {
    if (warp == 1) {
      if (i > 0) ptx::barrier_sync(2, 64);  // free again
      staged[lane] = p.in[32 * i + lane];
      ptx::barrier_arrive(1, 64);
    } else {
      ptx::barrier_sync(1, 64);  // full
      p.out[32 * i + lane] = staged[31 - lane];
      if (i + 1 < p.n / 32) ptx::barrier_arrive(2, 64);
    }
  }
}

// ---- clusters: every block reads its right neighbour's shared memory, sends to its left one, and adds to block 0 ----
__global__ void cluster_kernel(const __grid_constant__ CopyParams p) {
  uint32_t* mine = shared_memory<uint32_t>();  // [32] own, [32] received, [1] sum, then a barrier
  const uint32_t rank = ptx::cluster_rank();
  const uint32_t size = ptx::cluster_size();
  const uint32_t barrier = ptx::shared_address(mine + 66);
  const int at = static_cast<int>(blockIdx.x) * 32 + thread();
  mine[thread()] = p.in[at];
  if (thread() == 0) {
    mine[64] = 0;
    ptx::mbarrier_init(barrier, 33);  // 32 by hand, one with the copy
    ptx::fence_mbarrier_init();
    ptx::mbarrier_arrive_expect_tx(barrier, 128);
  }
  ptx::fence_proxy_async();
  ptx::cluster_sync();
  const uint32_t left = (rank + size - 1) % size;
  if (thread() == 0) {
    ptx::bulk_copy_cluster(ptx::map_shared(ptx::shared_address(mine + 32), left), ptx::shared_address(mine), 128,
                           ptx::map_shared(barrier, left));
  }
  ptx::mbarrier_arrive_cluster(ptx::map_shared(barrier, left));
  const uint32_t neighbour = *ptx::map_shared(mine + thread(), (rank + 1) % size);
  atomicAdd(ptx::map_shared(mine + 64, 0), neighbour);
  ptx::mbarrier_wait(barrier, 0);
  const uint32_t received = mine[32 + thread()];
  ptx::cluster_sync();
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
void mma_tf32(Buffer d, Buffer a, Buffer b) {
  start<mma_kernel<Mma::kTf32>>(MmaParams{d.data<float>(), a.data<uint32_t>(), b.data<uint32_t>()}, 32);
}
DSN_SIMT_BIND(mma_half);
DSN_SIMT_BIND(mma_bfloat16);
DSN_SIMT_BIND(mma_tf32);

void gemm(Buffer d, Buffer a, Buffer b) {
  start<gemm_kernel<false>>(GemmParams{d.data<float>(), a.data<__half>(), b.data<__half>()}, 32);
}
void gemm_wrong_layout(Buffer d, Buffer a, Buffer b) {
  start<gemm_kernel<true>>(GemmParams{d.data<float>(), a.data<__half>(), b.data<__half>()}, 32);
}
DSN_SIMT_BIND(gemm);
DSN_SIMT_BIND(gemm_wrong_layout);

void to_tf32(Buffer out, Buffer in) {
  start<to_tf32_kernel>(ConvertParams{out.data<uint32_t>(), in.data<float>()}, static_cast<int>(in.size<float>()));
}
DSN_SIMT_BIND(to_tf32);

template <int kMatrices, bool kTransposed>
void run_ldmatrix(Buffer r, Buffer in, Buffer offsets) {
  start<ldmatrix_kernel<kMatrices, kTransposed>>(
      LdmatrixParams{r.data<uint32_t>(), in.data<uint32_t>(), offsets.data<int>()}, 32, 2048);
}
void ldmatrix_x1(Buffer r, Buffer in, Buffer offsets) { run_ldmatrix<1, false>(r, in, offsets); }
void ldmatrix_x2(Buffer r, Buffer in, Buffer offsets) { run_ldmatrix<2, false>(r, in, offsets); }
void ldmatrix_x4(Buffer r, Buffer in, Buffer offsets) { run_ldmatrix<4, false>(r, in, offsets); }
void ldmatrix_x1_trans(Buffer r, Buffer in, Buffer offsets) { run_ldmatrix<1, true>(r, in, offsets); }
void ldmatrix_x2_trans(Buffer r, Buffer in, Buffer offsets) { run_ldmatrix<2, true>(r, in, offsets); }
void ldmatrix_x4_trans(Buffer r, Buffer in, Buffer offsets) { run_ldmatrix<4, true>(r, in, offsets); }
DSN_SIMT_BIND(ldmatrix_x1);
DSN_SIMT_BIND(ldmatrix_x2);
DSN_SIMT_BIND(ldmatrix_x4);
DSN_SIMT_BIND(ldmatrix_x1_trans);
DSN_SIMT_BIND(ldmatrix_x2_trans);
DSN_SIMT_BIND(ldmatrix_x4_trans);

CopyParams copy_params(Buffer out, Buffer in) {
  return {out.data<uint32_t>(), in.data<uint32_t>(), static_cast<int>(in.size<uint32_t>())};
}
void pipeline_4(Buffer out, Buffer in) { start<pipeline_kernel<4>>(copy_params(out, in), 32, 1536); }
void pipeline_8(Buffer out, Buffer in) { start<pipeline_kernel<8>>(copy_params(out, in), 32, 1536); }
void pipeline_16(Buffer out, Buffer in) { start<pipeline_kernel<16>>(copy_params(out, in), 32, 1536); }
void bulk_pipeline(Buffer out, Buffer in) { start<bulk_pipeline_kernel>(copy_params(out, in), 96, 544); }
void copy_arrive(Buffer out, Buffer in) { start<copy_arrive_kernel>(copy_params(out, in), 64, 264); }
void bulk_store(Buffer out, Buffer in) { start<bulk_store_kernel>(copy_params(out, in), 64, 256); }
void named_barrier(Buffer out, Buffer in) { start<named_barrier_kernel>(copy_params(out, in), 96, 128); }
void cluster(Buffer out, Buffer in) {
  const int blocks = static_cast<int>(in.size<uint32_t>()) / 32;
  start<cluster_kernel>(copy_params(out, in), 32, 272, blocks, blocks / 2);
}
DSN_SIMT_BIND(pipeline_4);
DSN_SIMT_BIND(pipeline_8);
DSN_SIMT_BIND(pipeline_16);
DSN_SIMT_BIND(bulk_pipeline);
DSN_SIMT_BIND(copy_arrive);
DSN_SIMT_BIND(bulk_store);
DSN_SIMT_BIND(named_barrier);
DSN_SIMT_BIND(cluster);

}  // namespace dsn::simt::bindings
