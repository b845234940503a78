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
#include "winograd_impl.h"
}  // namespace avx512

const Kernels kAvx512 = {"avx512",
                         avx512::conv_tile<1>,
                         avx512::conv_tile<9>,
                         avx512::conv_tile<9, 2>,
                         avx512::winograd3x3,
                         avx512::normalise,
                         avx512::gather,
                         avx512::pick,
                         avx512::select,
                         avx512::normalised_sum,
                         avx512::normalise_pool,
                         avx512::bilinear,
                         avx512::copy_rows,
                         avx512::zero_rows,
                         avx512::dot};
}  // namespace dsn::cpu

#pragma GCC pop_options
#endif
