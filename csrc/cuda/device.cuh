// What every kernel includes, whichever machine it is compiled for: nvcc builds it for the device, g++ with DSN_SIMT
// for the runner in csrc/simt, which plays the device on the host. No torch header.
//
// A kernel is `template <class Traits> __global__ void foo_kernel(const __grid_constant__ Params p)`, written in CUDA
// as usual (threadIdx, __syncthreads, shuffles, atomics, plain pointers) but for three things: shared memory is dynamic
// and comes from shared_memory(), inline PTX stands in ptx.cuh only, and launches go through launch().
#pragma once

#ifdef DSN_SIMT
#include "simt/cuda_on_host.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <atomic>
#include <cstdint>
#include <type_traits>

namespace dsn::cuda {

// For how many blocks of a multiprocessor some kernels' registers must suffice, 0: as the assembler sees fit. On sm_90
// it fits them well; elsewhere it would make room for one block more by spilling a few, from sm_100 on also where two
// blocks of 16-bit kernels need all registers (kLeastWideBlocks).
#if !defined(__CUDA_ARCH__) || (__CUDA_ARCH__ >= 900 && __CUDA_ARCH__ < 1000)
constexpr int kLeastBlocks = 0, kLeastWideBlocks = 0;
#else
constexpr int kLeastBlocks = 1, kLeastWideBlocks = __CUDA_ARCH__ >= 1000;
#endif

// Likewise of the convolutions that are not plain: before sm_80 two blocks of theirs would spill.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr int kMostGeneralBlocks = 2;
#else
constexpr int kMostGeneralBlocks = 1;
#endif

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool kHasClusters = true;
#else
constexpr bool kHasClusters = false;
#endif

// The block's dynamic shared memory, from `offset` bytes on. 128-byte aligned at offset 0.
template <class T>
__device__ inline T* shared_memory(int offset = 0) {
#ifdef DSN_SIMT
  return reinterpret_cast<T*>(simt::shared_memory() + offset);
#else
  extern __shared__ __align__(128) unsigned char dsn_dynamic_shared_memory[];
  return reinterpret_cast<T*>(dsn_dynamic_shared_memory + offset);
#endif
}

struct LaunchConfig {
  dim3 grid;
  dim3 block;
  int shared_bytes = 0;
  dim3 cluster = dim3(1, 1, 1);
  // Programmatic dependent launch: may start before the kernel ahead of it in the stream has ended. Every block then
  // calls ptx::grid_dependency_wait() before it touches what other kernels write or read. Ignored before sm_90.
  bool dependent = false;
  cudaStream_t stream = nullptr;
};

// Lets every launch of a kernel on this device ask for all the shared memory that a block may have. Once, and to the
// same limit for all: one that followed each launch's own bytes would be lowered beneath a launch of another host
// thread, or a node of a graph, that needs more.
template <auto kKernel>
cudaError_t allow_shared_memory(int device) {
  static std::atomic<uint64_t> allowed = 0;  // a bit for each device
  const uint64_t bit = uint64_t{1} << (device & 63);
  if (device < 64 && allowed.load(std::memory_order_acquire) & bit) return cudaSuccess;
  int most = 0;
  cudaError_t status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (status == cudaSuccess)
    status =
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kKernel), cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (status == cudaSuccess) allowed.fetch_or(bit, std::memory_order_release);
  return status;
}

constexpr int kSharedWithoutAsking = 48 * 1024;  // bytes of a block, on every device

// launch<foo_kernel<Traits>>(config, params): the one way a kernel is started, on the device and on the host. Returns
// the launch's error, without synchronising; on the host, what a kernel did wrong is thrown as simt::Error.
template <auto kKernel, class Params>
cudaError_t launch(const LaunchConfig& config, const Params& params) {
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess && config.shared_bytes > kSharedWithoutAsking)
    status = allow_shared_memory<kKernel>(device);
  if (status != cudaSuccess) return status;
#ifdef DSN_SIMT
  return simt::launch<kKernel>(config, params);
#else
  int major = 0;
  status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status != cudaSuccess) return status;
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t described = {};
  described.gridDim = config.grid;
  described.blockDim = config.block;
  described.dynamicSmemBytes = static_cast<size_t>(config.shared_bytes);
  described.stream = config.stream;
  described.attrs = attributes;
  if (config.cluster.x * config.cluster.y * config.cluster.z > 1) {
    cudaLaunchAttribute& cluster = attributes[described.numAttrs++];
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = config.cluster.x;
    cluster.val.clusterDim.y = config.cluster.y;
    cluster.val.clusterDim.z = config.cluster.z;
  }
  if (config.dependent && major >= 9) {
    cudaLaunchAttribute& dependent = attributes[described.numAttrs++];
    dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    dependent.val.programmaticStreamSerializationAllowed = 1;
  }
  return cudaLaunchKernelEx(&described, kKernel, params);
#endif
}

}  // namespace dsn::cuda
