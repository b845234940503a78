// Host twins of the instructions in cuda/ptx.cuh, which says what each does.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace dsn::ptx {

uint32_t shared_address(const void* pointer);

template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
void mma_m16n8k16<__half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
uint32_t to_tf32(float value);

template <bool kTransposed = false>
void ldmatrix_x1(uint32_t (&r)[1], uint32_t address);
template <bool kTransposed = false>
void ldmatrix_x2(uint32_t (&r)[2], uint32_t address);
template <bool kTransposed = false>
void ldmatrix_x4(uint32_t (&r)[4], uint32_t address);

template <int kBytes>
void cp_async(uint32_t destination, const void* source, int from_source = kBytes);
void cp_async_commit();
void cp_async_wait_pending(int pending);
template <int kPending>
__attribute__((always_inline)) inline void cp_async_wait() {
  cp_async_wait_pending(kPending);
}

void barrier_sync(int id, int threads);
void barrier_arrive(int id, int threads);

void grid_dependency_wait();
void grid_launch_dependents();

uint32_t cluster_rank();
uint32_t cluster_size();
void cluster_arrive();
void cluster_wait();
__attribute__((always_inline)) inline void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
uint32_t map_shared(uint32_t address, uint32_t rank);
void* map_shared(const void* pointer, uint32_t rank);
template <class T>
__attribute__((always_inline)) inline T* map_shared(T* pointer, uint32_t rank) {
  return static_cast<T*>(map_shared(static_cast<const void*>(pointer), rank));
}

void mbarrier_init(uint32_t barrier, uint32_t count);
void fence_mbarrier_init();
void mbarrier_arrive(uint32_t barrier);
void mbarrier_arrive_cluster(uint32_t barrier);
void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes);
void cp_async_mbarrier_arrive(uint32_t barrier);
void mbarrier_wait(uint32_t barrier, uint32_t parity);

void fence_proxy_async();
void bulk_load(uint32_t destination, const void* source, uint32_t bytes, uint32_t barrier);
void bulk_copy_cluster(uint32_t destination, uint32_t source, uint32_t bytes, uint32_t barrier);
void bulk_store(void* destination, uint32_t source, uint32_t bytes);
void bulk_commit();
void bulk_wait_pending(int pending);
template <int kPending, bool kReadOnly = false>
__attribute__((always_inline)) inline void bulk_wait() {
  bulk_wait_pending(kPending);
}

}  // namespace dsn::ptx
