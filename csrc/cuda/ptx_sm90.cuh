// The part of ptx.cuh that needs sm_90: clusters, mbarrier, bulk copies. Compiled for older devices, a cluster is one
// block and the rest traps, so kernels choose by architecture before they come here.
#pragma once

#if __CUDA_ARCH__ >= 900
#define DSN_PTX_SM90(...) asm volatile(__VA_ARGS__)
#else
#define DSN_PTX_SM90(...) __trap()
#endif

namespace dsn::ptx {

// ---- clusters ----
__device__ inline uint32_t cluster_rank() {
  uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}

__device__ inline uint32_t cluster_size() {
  uint32_t size = 1;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
  return size;
}

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

// The shared address of the same place in block `rank` of the cluster.
__device__ inline uint32_t map_shared(uint32_t address, uint32_t rank) {
#if __CUDA_ARCH__ >= 900
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(address), "r"(rank));
#endif
  return address;
}

// The same, as a pointer that plain loads, stores and atomics take.
template <class T>
__device__ inline T* map_shared(T* pointer, uint32_t rank) {
#if __CUDA_ARCH__ >= 900
  asm("mapa.u64 %0, %1, %2;" : "=l"(pointer) : "l"(pointer), "r"(rank));
#endif
  return pointer;
}

// ---- mbarrier: 8 bytes of shared memory that count arrivals and, with expect_tx, bytes ----
// A phase ends when `count` arrivals and all expected bytes are in; wait(parity) returns once the phase of that parity
// (0 for the first, then 1, 0, ..) has ended. Initialise in one thread, fence, then let the others see it by a barrier.
__device__ inline void mbarrier_init(uint32_t barrier, uint32_t count) {
  DSN_PTX_SM90("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// Makes initialised mbarriers visible to the cluster and to the asynchronous copies.
__device__ inline void fence_mbarrier_init() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ inline void mbarrier_arrive(uint32_t barrier) {
  DSN_PTX_SM90("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" ::"r"(barrier) : "memory");
}

// Arrives at a barrier in another block of the cluster (an address from map_shared).
__device__ inline void mbarrier_arrive_cluster(uint32_t barrier) {
  DSN_PTX_SM90("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// One arrival that also announces `bytes` of bulk copies.
__device__ inline void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
  DSN_PTX_SM90("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }" ::"r"(barrier),
               "r"(bytes) : "memory");
}

// An arrival that comes when all cp.async of this thread so far have landed; counts as one of the barrier's `count`.
__device__ inline void cp_async_mbarrier_arrive(uint32_t barrier) {
  DSN_PTX_SM90("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

__device__ inline void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  uint32_t done = 1;
  do {
    DSN_PTX_SM90(
        "{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; "
        "}" : "=r"(done) : "r"(barrier),
        "r"(parity) : "memory");
  } while (!done);
}

// ---- bulk copies: a multiple of 16 bytes, 16-byte aligned at both ends, started by one thread ----
// Orders this thread's plain accesses of shared memory before the bulk copies that it starts, or that others start
// behind a barrier.
__device__ inline void fence_proxy_async() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Global to shared; lands at a wait for the phase of `barrier` that expects its bytes.
__device__ inline void bulk_load(uint32_t destination, const void* source, uint32_t bytes, uint32_t barrier) {
  DSN_PTX_SM90(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(destination),
      "l"(source), "r"(bytes), "r"(barrier) : "memory");
}

// This block's shared memory to another block's; destination and barrier are addresses of the other block.
__device__ inline void bulk_copy_cluster(uint32_t destination, uint32_t source, uint32_t bytes, uint32_t barrier) {
  DSN_PTX_SM90(
      "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(destination),
      "r"(source), "r"(bytes), "r"(barrier) : "memory");
}

// Shared to global, in groups like those of cp.async.
__device__ inline void bulk_store(void* destination, uint32_t source, uint32_t bytes) {
  DSN_PTX_SM90("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(destination), "r"(source),
               "r"(bytes) : "memory");
}

__device__ inline void bulk_commit() { DSN_PTX_SM90("cp.async.bulk.commit_group;" :: : "memory"); }

// Waits until at most kPending groups are under way; with kReadOnly, only until their sources may be overwritten.
template <int kPending, bool kReadOnly = false>
__device__ inline void bulk_wait() {
  if constexpr (kReadOnly) {
    DSN_PTX_SM90("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
  } else {
    DSN_PTX_SM90("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
  }
}

}  // namespace dsn::ptx

#undef DSN_PTX_SM90
