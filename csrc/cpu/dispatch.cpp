#include <cstdlib>
#include <string_view>

#include "kernels.h"

namespace dsn::cpu {

const Kernels& kernels() {
  static const Kernels& best = []() -> const Kernels& {
    const char* limit = std::getenv("DSN_ISA");
    const std::string_view highest = limit ? limit : "avx512";
#if defined(__x86_64__)
    if (highest == "avx512" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
      return kAvx512;
    if (highest != "generic" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2;
#endif
    return kGeneric;
  }();
  return best;
}

}  // namespace dsn::cpu
