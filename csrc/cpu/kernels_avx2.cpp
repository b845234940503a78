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
#include "winograd_impl.h"
}  // namespace avx2

const Kernels kAvx2 = {"avx2",
                       avx2::conv_tile<1>,
                       avx2::conv_tile<9>,
                       avx2::conv_tile<9, 2>,
                       avx2::winograd3x3,
                       avx2::normalise,
                       avx2::gather,
                       avx2::pick,
                       avx2::select,
                       avx2::normalised_sum,
                       avx2::normalise_pool,
                       avx2::bilinear,
                       avx2::copy_rows,
                       avx2::zero_rows,
                       avx2::dot};
}  // namespace dsn::cpu

#pragma GCC pop_options
#endif
