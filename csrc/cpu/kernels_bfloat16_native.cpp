// Micro-kernels for pairs of bfloat16 with the instruction vdpbf16ps.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")

namespace dsn::cpu {
namespace bfloat16_native {
#define DSN_VECTOR_BYTES 64
#define DSN_PAIRS
#define DSN_PAIRS_NATIVE
#include "conv_impl.h"
#include "pairs_impl.h"
}  // namespace bfloat16_native

const Bfloat16Kernels kBfloat16Native = {"vdpbf16ps",
                                         bfloat16_native::pointwise_pairs,
                                         bfloat16_native::conv3x3_pairs,
                                         bfloat16_native::conv3x3_stride2_pairs,
                                         bfloat16_native::pack_pairs,
                                         bfloat16_native::normalise_pairs,
                                         bfloat16_native::dot_of_pairs};
}  // namespace dsn::cpu

#pragma GCC pop_options
#endif
