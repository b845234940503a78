// Micro-kernels for AVX2.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma")

namespace dsn::cpu {
namespace avx2 {
#define DSN_VECTOR_BYTES 32
#include "kernels_impl.h"
}  // namespace avx2

const Kernels kAvx2 = avx2::table("avx2");
}  // namespace dsn::cpu

#pragma GCC pop_options
#endif
