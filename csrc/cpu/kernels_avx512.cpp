// Micro-kernels for AVX512.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")

namespace dsn::cpu {
namespace avx512 {
#define DSN_VECTOR_BYTES 64
#include "kernels_impl.h"
}  // namespace avx512

const Kernels kAvx512 = avx512::table("avx512");
}  // namespace dsn::cpu

#pragma GCC pop_options
#endif
