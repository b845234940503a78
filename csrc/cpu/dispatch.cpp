#include <cstdlib>
#include <string_view>

#include "kernels.h"

namespace dsn::cpu {

namespace {

std::string_view highest() {
  const char* limit = std::getenv("DSN_ISA");
  return limit ? limit : "avx512_bf16";
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& best = []() -> const Kernels& {
#if defined(__x86_64__)
    if (highest().starts_with("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
      return kAvx512;
    if (highest() != "generic" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2;
#endif
    return kGeneric;
  }();
  return best;
}

const Bfloat16Kernels* bfloat16_kernels() {
#if defined(__x86_64__)
  if (&kernels() != &kAvx512) return nullptr;
  static const bool native = highest() == "avx512_bf16" && __builtin_cpu_supports("avx512bf16");
  return native ? &kBfloat16Native : &kBfloat16Twin;
#else
  return nullptr;
#endif
}

}  // namespace dsn::cpu
