// The only inline PTX of the library. Each function is one instruction, or its plain fallback on older devices. On the
// host it is a twin of the same name in simt/ptx_twins.h, with the same semantics, lane by lane.
//
// Shared addresses are the 32-bit ones of the shared window: shared_address() makes one of a pointer.
#pragma once

#include "cuda/device.cuh"

#ifdef DSN_SIMT
#include "simt/ptx_twins.h"
#else

namespace dsn::ptx {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- matrix multiply-accumulate: D += A B, one warp ----
// Lane l, group g = l / 4, t = l % 4. 16-bit types, two to a register, low half first:
//   A [16 x 16]  a0 (g, 2t..)  a1 (g + 8, 2t..)  a2 (g, 2t + 8..)  a3 (g + 8, 2t + 8..)
//   B [16 x 8]   b0 (2t.., g)  b1 (2t + 8.., g)
//   D [16 x 8]   d0 d1 (g, 2t..)  d2 d3 (g + 8, 2t..)
// T is __half or __nv_bfloat16 (sm_80 and later).
template <class T>
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ inline void mma_m16n8k16<__half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ < 800  // sm_75 has half the depth
  for (int half = 0; half < 2; ++half) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
  }
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

template <>
__device__ inline void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ < 800
  __trap();
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// ---- cp.async: global to shared, behind the thread's back ----
// Copies kBytes (4, 8 or 16; both ends aligned to it); of the source only `from_source` bytes are read, the rest is
// zero. Lands at the thread's cp_async_wait; other threads see it behind a barrier after that. A plain copy on sm_75.
template <int kBytes>
__device__ inline void cp_async(uint32_t destination, const void* source, int from_source = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
#if __CUDA_ARCH__ < 800
  using Word = std::conditional_t<kBytes == 4, uint32_t, std::conditional_t<kBytes == 8, uint2, uint4> >;
  Word word = {};
  if (from_source == kBytes) {
    word = *static_cast<const Word*>(source);
  } else {
    for (int i = 0; i < from_source; ++i) {
      reinterpret_cast<unsigned char*>(&word)[i] = static_cast<const unsigned char*>(source)[i];
    }
  }
  *static_cast<Word*>(__cvta_shared_to_generic(destination)) = word;
#else
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(destination), "l"(source), "r"(from_source)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(destination), "l"(source), "n"(kBytes),
                 "r"(from_source)
                 : "memory");
  }
#endif
}

__device__ inline void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most the kPending latest committed groups of this thread are under way.
template <int kPending>
__device__ inline void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// ---- clusters: before sm_90 one is a block ----
// The cluster's barrier, in two halves: arrive releases what this thread wrote, wait acquires what the others did.
__device__ inline void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}

__device__ inline void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __syncthreads();
#endif
}

__device__ inline void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// The same place in the shared memory of block `rank` of the cluster, for plain loads, stores and atomics.
template <class T>
__device__ inline T* map_shared(T* pointer, uint32_t rank) {
#if __CUDA_ARCH__ >= 900
  asm("mapa.u64 %0, %1, %2;" : "=l"(pointer) : "l"(pointer), "r"(rank));
#endif
  return pointer;
}

// ---- programmatic dependent launch (no-ops before sm_90) ----
// Waits for the kernels ahead in the stream to end and their writes to be visible.
__device__ inline void grid_dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel start once every block has called this or ended.
__device__ inline void grid_launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace dsn::ptx

#endif
