// What the operators need of torch on a GPU, on the stable ABI.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/checks.h"
#include "cuda/refusals.h"

struct CUstream_st;

namespace dsn::cuda {

// libtorch_cuda is not linked, so that the module imports beside a torch without it; where a tensor is on a GPU it is
// loaded.
inline CUstream_st* current_stream(const char* op, int device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function function = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = dlsym(library ? library : RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream");
    return reinterpret_cast<Function>(symbol);
  }();
  check(function != nullptr, op, ": this torch has no CUDA streams; install a torch with CUDA");
  void* stream = nullptr;
  check(function(device, &stream) == AOTI_TORCH_SUCCESS, op, ": cannot get the current stream of cuda:", device);
  return static_cast<CUstream_st*>(stream);
}

inline Tensor empty(const char* op, const std::vector<int64_t>& sizes, int32_t dtype, int device,
                    const std::string& what) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  AtenTensorHandle handle;
  const AOTITorchError status =
      aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype,
                               aoti_torch_device_type_cuda(), device, &handle);
  check(status == AOTI_TORCH_SUCCESS, op, ": ", no_memory(device, what));
  return Tensor(handle);
}

inline void check_gpu_tensor(const char* op, const char* name, const Tensor& t, int device, ScalarType dtype,
                             const std::vector<int64_t>& shape) {
  const std::string refused = refuse_place(name, t.is_cuda() ? static_cast<int>(t.get_device_index()) : -1, device);
  check(refused.empty(), op, ": ", refused);
  check_type_and_shape(op, name, t, dtype, shape);
}

}  // namespace dsn::cuda
