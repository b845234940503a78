#include "cuda/device_info.h"

#include <cuda_runtime.h>

#include "cuda/device_info.cuh"

namespace dsn::cuda {
namespace {

// Runs the probe on the current device and returns the first error of the sequence.
cudaError_t launch_probe(int* host_arch) {
  int* arch = nullptr;
  cudaError_t status = cudaMalloc(&arch, sizeof(int));
  if (status != cudaSuccess) return status;
  probe_kernel<<<1, 1>>>(arch);
  status = cudaGetLastError();
  if (status == cudaSuccess) status = cudaMemcpy(host_arch, arch, sizeof(int), cudaMemcpyDeviceToHost);
  const cudaError_t freed = cudaFree(arch);
  return status != cudaSuccess ? status : freed;
}

DeviceInfo describe(int device) {
  DeviceInfo info;
  cudaDeviceProp properties;
  cudaError_t status = cudaGetDeviceProperties(&properties, device);
  if (status == cudaSuccess) {
    info.name = properties.name;
    info.major = properties.major;
    info.minor = properties.minor;
    info.multiprocessors = properties.multiProcessorCount;
    info.memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
    status = cudaSetDevice(device);
  }
  if (status == cudaSuccess) status = launch_probe(&info.kernel_arch);
  if (status != cudaSuccess) {
    info.kernel_arch = 0;
    info.error = cudaGetErrorString(status);
  }
  cudaGetLastError();  // a failed probe leaves no error behind for the caller's next launch
  return info;
}

}  // namespace

RuntimeInfo runtime() {
  RuntimeInfo info;
  info.runtime_version = CUDART_VERSION;
  cudaDriverGetVersion(&info.driver_version);
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) info.error = info.driver_version ? cudaGetErrorString(status) : "no CUDA driver";
  cudaGetLastError();
  return info;
}

std::vector<DeviceInfo> devices() {
  int count = 0;
  int current = 0;
  std::vector<DeviceInfo> found;
  if (cudaGetDeviceCount(&count) == cudaSuccess && cudaGetDevice(&current) == cudaSuccess) {
    for (int device = 0; device < count; ++device) found.push_back(describe(device));
    cudaSetDevice(current);
  }
  cudaGetLastError();
  return found;
}

}  // namespace dsn::cuda
