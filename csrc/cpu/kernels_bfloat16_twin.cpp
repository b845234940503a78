// Micro-kernels for pairs of bfloat16 with a twin of the instruction vdpbf16ps: the same results on any AVX-512.
#if defined(__x86_64__)
#include <immintrin.h>

#include "kernels.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")

namespace dsn::cpu {
namespace bfloat16_twin {
#define DSN_VECTOR_BYTES 64
#define DSN_PAIRS
#include "conv_impl.h"
#include "pairs_impl.h"
}  // namespace bfloat16_twin

const Bfloat16Kernels kBfloat16Twin = {"twin of vdpbf16ps",          bfloat16_twin::pointwise_pairs,
                                       bfloat16_twin::conv3x3_pairs, bfloat16_twin::conv3x3_stride2_pairs,
                                       bfloat16_twin::pack_pairs,    bfloat16_twin::normalise_pairs,
                                       bfloat16_twin::dot_of_pairs};
}  // namespace dsn::cpu

#pragma GCC pop_options
#endif
