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

template <int kBytes>
void cp_async(uint32_t destination, const void* source, int from_source = kBytes);
void cp_async_commit();
void cp_async_wait_pending(int pending);
template <int kPending>
__attribute__((always_inline)) inline void cp_async_wait() {
  cp_async_wait_pending(kPending);
}

void grid_dependency_wait();
void grid_launch_dependents();

void cluster_arrive();
void cluster_wait();
__attribute__((always_inline)) inline void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
void* map_shared(const void* pointer, uint32_t rank);
template <class T>
__attribute__((always_inline)) inline T* map_shared(T* pointer, uint32_t rank) {
  return static_cast<T*>(map_shared(static_cast<const void*>(pointer), rank));
}

}  // namespace dsn::ptx
