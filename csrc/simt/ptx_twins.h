// Host twins of the instructions in cuda/ptx.cuh, which says what each does.
#pragma once

#include <cstdint>

namespace dsn::simt {

uint32_t shared_address(const void* pointer);

void mma_m16n8k16_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
uint32_t to_tf32(float value);
void ldmatrix(uint32_t* r, int matrices, bool transposed, uint32_t address);

void cp_async(uint32_t destination, const void* source, int bytes, int from_source);
void cp_async_commit();
void cp_async_wait(int pending);

void barrier_sync(int id, int threads);
void barrier_arrive(int id, int threads);

void grid_dependency_wait();
void grid_launch_dependents();

uint32_t cluster_rank();
uint32_t cluster_size();
void cluster_arrive();
void cluster_wait();
uint32_t map_shared(uint32_t address, uint32_t rank);
void* map_shared_pointer(const void* pointer, uint32_t rank);

void mbarrier_init(uint32_t barrier, uint32_t count);
void fence_mbarrier_init();
void mbarrier_arrive(uint32_t barrier, uint32_t bytes);
void cp_async_mbarrier_arrive(uint32_t barrier);
void mbarrier_wait(uint32_t barrier, uint32_t parity);

void fence_proxy_async();
void bulk_load(uint32_t destination, const void* source, uint32_t bytes, uint32_t barrier);
void bulk_copy_cluster(uint32_t destination, uint32_t source, uint32_t bytes, uint32_t barrier);
void bulk_store(void* destination, uint32_t source, uint32_t bytes);
void bulk_commit();
void bulk_wait(int pending, bool read_only);

}  // namespace dsn::simt
