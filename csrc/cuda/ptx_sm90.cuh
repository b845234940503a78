// The part of ptx.cuh that needs sm_90: clusters, mbarrier, bulk copies. Compiled for older devices, a cluster is one
// block and the rest traps, so kernels choose by architecture before they come here.
#pragma once

#include "cuda/ptx.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define DSN_PTX_SM90(twin, older, ...) older
#else
#define DSN_PTX_SM90(twin, older, ...) DSN_PTX(twin, __VA_ARGS__)
#endif

namespace dsn::ptx {

// ---- clusters ----
__device__ inline uint32_t cluster_rank() {
  DSN_PTX_SM90(simt::cluster_rank(), return 0, uint32_t rank;
               asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)); return rank;);
}

__device__ inline uint32_t cluster_size() {
  DSN_PTX_SM90(simt::cluster_size(), return 1, uint32_t size;
               asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size)); return size;);
}

// The cluster's barrier, in two halves: arrive releases what this thread wrote, wait acquires what the others did.
__device__ inline void cluster_arrive() {
  DSN_PTX_SM90(simt::cluster_arrive(), ,
               asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"););
}

__device__ inline void cluster_wait() {
  DSN_PTX_SM90(simt::cluster_wait(), __syncthreads(),
               asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"););
}

__device__ inline void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// The shared address of the same place in block `rank` of the cluster.
__device__ inline uint32_t map_shared(uint32_t address, uint32_t rank) {
  DSN_PTX_SM90(simt::map_shared(address, rank), return address, uint32_t mapped;
               asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank)); return mapped;);
}

// The same, as a pointer that plain loads, stores and atomics take.
template <class T>
__device__ inline T* map_shared(T* pointer, uint32_t rank) {
  DSN_PTX_SM90(static_cast<T*>(simt::map_shared_pointer(pointer, rank)), return pointer, T* mapped;
               asm("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(pointer), "r"(rank)); return mapped;);
}

// ---- mbarrier: 8 bytes of shared memory that count arrivals and, with expect_tx, bytes ----
// A phase ends when `count` arrivals and all expected bytes are in; wait(parity) returns once the phase of that parity
// (0 for the first, then 1, 0, ..) has ended. Initialise in one thread, fence, then let the others see it by a barrier.
__device__ inline void mbarrier_init(uint32_t barrier, uint32_t count) {
  DSN_PTX_SM90(simt::mbarrier_init(barrier, count), __trap(),
               asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory"););
}

// Makes initialised mbarriers visible to the cluster and to the asynchronous copies.
__device__ inline void fence_mbarrier_init() {
  DSN_PTX_SM90(simt::fence_mbarrier_init(), , asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"););
}

__device__ inline void mbarrier_arrive(uint32_t barrier) {
  DSN_PTX_SM90(simt::mbarrier_arrive(barrier, 0), __trap(),
               asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(barrier)
                            : "memory"););
}

// Arrives at a barrier in another block of the cluster (an address from map_shared).
__device__ inline void mbarrier_arrive_cluster(uint32_t barrier) {
  DSN_PTX_SM90(simt::mbarrier_arrive(barrier, 0), __trap(),
               asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory"););
}

// One arrival that also announces `bytes` of bulk copies.
__device__ inline void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
  DSN_PTX_SM90(simt::mbarrier_arrive(barrier, bytes), __trap(),
               asm volatile(
                   "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(barrier),
                   "r"(bytes)
                   : "memory"););
}

// An arrival that comes when all cp.async of this thread so far have landed; counts as one of the barrier's `count`.
__device__ inline void cp_async_mbarrier_arrive(uint32_t barrier) {
  DSN_PTX_SM90(simt::cp_async_mbarrier_arrive(barrier), __trap(),
               asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory"););
}

__device__ inline void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  DSN_PTX_SM90(simt::mbarrier_wait(barrier, parity), __trap(), uint32_t done; do {
    asm volatile(
        "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (!done););
}

// ---- bulk copies: a multiple of 16 bytes, 16-byte aligned at both ends, started by one thread ----
// Orders this thread's plain accesses of shared memory before the bulk copies it starts next.
__device__ inline void fence_proxy_async() {
  DSN_PTX_SM90(simt::fence_proxy_async(), , asm volatile("fence.proxy.async.shared::cta;" ::: "memory"););
}

// Global to shared; lands at a wait for the phase of `barrier` that expects its bytes.
__device__ inline void bulk_load(uint32_t destination, const void* source, uint32_t bytes, uint32_t barrier) {
  DSN_PTX_SM90(
      simt::bulk_load(destination, source, bytes, barrier), __trap(),
      asm volatile(
          "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(destination),
          "l"(source), "r"(bytes), "r"(barrier)
          : "memory"););
}

// This block's shared memory to another block's; destination and barrier are addresses of the other block.
__device__ inline void bulk_copy_cluster(uint32_t destination, uint32_t source, uint32_t bytes, uint32_t barrier) {
  DSN_PTX_SM90(
      simt::bulk_copy_cluster(destination, source, bytes, barrier), __trap(),
      asm volatile(
          "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
              destination),
          "r"(source), "r"(bytes), "r"(barrier)
          : "memory"););
}

// Shared to global, in groups like those of cp.async.
__device__ inline void bulk_store(void* destination, uint32_t source, uint32_t bytes) {
  DSN_PTX_SM90(simt::bulk_store(destination, source, bytes), __trap(),
               asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(destination),
                            "r"(source), "r"(bytes)
                            : "memory"););
}

__device__ inline void bulk_commit() {
  DSN_PTX_SM90(simt::bulk_commit(), __trap(), asm volatile("cp.async.bulk.commit_group;" ::: "memory"););
}

// Waits until at most kPending groups are under way; with kReadOnly, only until their sources may be overwritten.
template <int kPending, bool kReadOnly = false>
__device__ inline void bulk_wait() {
  DSN_PTX_SM90(simt::bulk_wait(kPending, kReadOnly), __trap(), if constexpr (kReadOnly) {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
  } else { asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory"); });
}

}  // namespace dsn::ptx
