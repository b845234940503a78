#pragma once

namespace dsn::cuda {

// Writes the architecture that this code was compiled for: tells which of the embedded ones the device picked.
static __global__ void probe_kernel(int* arch) {  // [1]
#ifdef __CUDA_ARCH__
  *arch = __CUDA_ARCH__;
#endif
}

}  // namespace dsn::cuda
