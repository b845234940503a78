// What an operator says of a device or a tensor that it cannot use: one line each. Plain C++, so that the host runner's
// tests read them where there is no GPU.
#pragma once

#include <string>

#include "cuda/layout.h"

namespace dsn::cuda {

// Why kernels of this element do not run on a device of this architecture, empty if they do. `has_code`: the build has
// code for it.
inline std::string refuse_device(int device, int arch, bool has_code, Element element) {
  const std::string what = "device " + std::to_string(device) + " is sm_" + std::to_string(arch);
  if (!has_code)
    return what + ", which this build has no code for; dsn info lists what it has, TORCH_CUDA_ARCH_LIST chooses";
  if (element == Element::kBfloat16 && arch < 80) return what + "; bfloat16 needs sm_80 or later: choose torch.float16";
  return "";
}

inline std::string no_memory(int device, const std::string& what) {
  return "out of memory on cuda:" + std::to_string(device) + " for " + what + "; use smaller batches";
}

// Of a tensor beside the image, which is on GPU `device`; `own`: the tensor's GPU, -1 for the CPU. Empty: the same.
inline std::string refuse_place(const std::string& name, int own, int device) {
  if (own == device) return "";
  if (own < 0) return name + " is not on a GPU, but the image is; move both to one device";
  return name + " is on cuda:" + std::to_string(own) + ", the image on cuda:" + std::to_string(device) +
         "; move both to one device";
}

}  // namespace dsn::cuda
