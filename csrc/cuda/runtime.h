// What the operators ask of the CUDA runtime. Plain C++: no CUDA and no torch header.
#pragma once

#include <memory>

#include "cuda/network.h"

namespace dsn::cuda {

// Why kernels of this element do not run on the device, empty if they do; says what machine it is. Remembers the
// answer.
std::string probe_device(int device, Element element, Machine* machine);

// `main` and streams of this thread beside it.
std::unique_ptr<Streams> make_streams(int device, CUstream_st* main);

// What a cudaError_t says, empty for success.
std::string error_text(int status);

// Zeroes device memory on a stream; returns the error.
std::string zero_memory(void* memory, int64_t bytes, CUstream_st* stream);

}  // namespace dsn::cuda
