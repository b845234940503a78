#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>

#include "kernels.h"

namespace dsn::cpu {

namespace {

constexpr std::string_view kIsas[] = {"generic", "avx2", "avx512", "avx512_bf16"};

std::string_view highest() {
  const char* given = std::getenv("DSN_ISA");
  const std::string_view limit = given && *given ? given : "avx512_bf16";
  if (std::find(std::begin(kIsas), std::end(kIsas), limit) == std::end(kIsas)) {
    std::string message = "DSN_ISA is '" + std::string(limit) + "'; expected one of ";
    for (std::string_view isa : kIsas) message += std::string(isa) + ", ";
    throw std::invalid_argument(message + "or none");
  }
  return limit;
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
