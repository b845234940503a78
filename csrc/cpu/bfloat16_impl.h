// What the micro-kernels need for pairs of bfloat16: a word holds two channels of a pixel, the first in its lower half.
// Included by conv_impl.h, for AVX-512; DSN_PAIRS_NATIVE: the CPU has vdpbf16ps.

typedef uint32_t words __attribute__((vector_size(DSN_VECTOR_BYTES)));

static inline vec broadcast_word(const float* p) { return (vec)_mm512_set1_epi32(*reinterpret_cast<const int*>(p)); }

// acc + a1 b1 + a0 b0 of each word, as the instruction does it (Intel SDM, VDPBF16PS): the products of the upper halves
// first, each sum rounded once, to the nearest even; denormals, in and out, are zero.
static inline vec dot_pairs(vec acc, vec a, vec b) {
#ifdef DSN_PAIRS_NATIVE
  return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
  auto high = [](vec x) { return (__m512)((words)x & 0xffff0000u); };
  auto low = [](vec x) { return (__m512)((words)x << 16); };
  return (vec)_mm512_fmadd_ps(low(a), low(b), _mm512_fmadd_ps(high(a), high(b), (__m512)acc));
#endif
}

// The mode in which the twin's multiply-adds are those of the instruction, which does not look at it.
class InstructionMode {
 public:
#ifdef DSN_PAIRS_NATIVE
  InstructionMode() {}
#else
  InstructionMode() : before_(_mm_getcsr()) { _mm_setcsr((before_ & ~0x6000u) | 0x8040u); }
  ~InstructionMode() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#endif
};

// Two channels as pairs, rounded to the nearest even; NaN stays NaN.
static inline vec make_pairs(vec first, vec second) {
  auto rounded = [](vec x) {
    const words bits = (words)x;
    return x != x ? words{} + 0x7fc00000u : bits + 0x7fffu + (bits >> 16 & 1u);
  };
  return (vec)((rounded(first) >> 16) | (rounded(second) & 0xffff0000u));
}
