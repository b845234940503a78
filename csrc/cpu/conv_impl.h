// The convolutions' micro-kernel, written once over GCC vector types and compiled once per instruction set and kind of
// number. The including file sets DSN_VECTOR_BYTES, the target pragma and the namespace; DSN_PAIRS for pairs of
// bfloat16.
//
// A register block is `Rows` output channels x `Vectors` vectors of pixels: per input channel (and
// tap) it loads the pixels once, broadcasts one weight per row and issues Rows * Vectors FMAs.

typedef float vec __attribute__((vector_size(DSN_VECTOR_BYTES)));
typedef float vec_unaligned __attribute__((vector_size(DSN_VECTOR_BYTES), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(DSN_VECTOR_BYTES)));
typedef int32_t ivec_unaligned __attribute__((vector_size(DSN_VECTOR_BYTES), aligned(4)));
constexpr int kLanes = DSN_VECTOR_BYTES / 4;

static inline vec load(const float* p) { return *reinterpret_cast<const vec_unaligned*>(p); }
static inline void store(float* p, vec v) { *reinterpret_cast<vec_unaligned*>(p) = v; }
static inline vec broadcast(float x) { return x - vec{}; }

// 0 where x <= 0; NaN stays NaN, as in torch.
static inline vec relu(vec x) {
#if DSN_VECTOR_BYTES == 64
  return (vec)_mm512_maskz_max_ps((__mmask16)0xffff, _mm512_setzero_ps(), (__m512)x);
#elif DSN_VECTOR_BYTES == 32
  return (vec)_mm256_max_ps(_mm256_setzero_ps(), (__m256)x);
#else
  return x < 0.f ? vec{} : x;
#endif
}

#if DSN_VECTOR_BYTES == 64
// Within two units in the last place; NaN stays NaN.
static inline vec exponential(vec x) {
  x = (vec)_mm512_min_ps((__m512)broadcast(88.3762626647949f), (__m512)x);
  x = (vec)_mm512_max_ps((__m512)broadcast(-87.3365478515625f), (__m512)x);
  const vec n = (vec)_mm512_roundscale_ps((__m512)(x * broadcast(1.44269504088896341f)), 8);  // to the nearest
  const vec r = (x - n * broadcast(0.693359375f)) + n * broadcast(2.12194440e-4f);
  vec p = broadcast(1.3814607e-3f);  // of least relative error for |r| < log(2) / 2: 3e-9
  for (float c : {8.3687175e-3f, 4.1668388e-2f, 1.6666521e-1f, 4.9999994e-1f, 1.f, 1.f}) p = p * r + broadcast(c);
  return (vec)_mm512_scalef_ps((__m512)p, (__m512)n);
}
// 1 / x of a finite x, within a unit or two in the last place: Newton's step behind 14 bits, in a third of a division's
// time.
static inline vec reciprocal(vec x) {
  const vec y = (vec)_mm512_rcp14_ps((__m512)x);
  return y + y * (broadcast(1.f) - x * y);
}
#else
// Within two units in the last place; NaN stays NaN.
static inline vec exponential(vec x) {
  const vec high = broadcast(88.3762626647949f), low = broadcast(-87.3365478515625f), magic = broadcast(12582912.f);
  x = x > high ? high : x;
  x = x < low ? low : x;
  const vec n = (x * broadcast(1.44269504088896341f) + magic) - magic;  // rounded
  const vec r = (x - n * broadcast(0.693359375f)) + n * broadcast(2.12194440e-4f);
  vec p = broadcast(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = p * r + broadcast(c);
  p = p * r * r + r + broadcast(1.f);
  return p * (vec)((__builtin_convertvector(n, ivec) + 127) << 23);
}
static inline vec reciprocal(vec x) { return broadcast(1.f) / x; }
#endif

// NaN stays NaN.
static inline vec clamp(vec x, float low, float high) {
#if DSN_VECTOR_BYTES == 32
  return (vec)_mm256_min_ps((__m256)broadcast(high), _mm256_max_ps((__m256)broadcast(low), (__m256)x));
#else
  x = x < broadcast(low) ? broadcast(low) : x;
  return x > broadcast(high) ? broadcast(high) : x;
#endif
}

template <Activation kKind>
static inline vec activate(vec x) {
  const vec one = broadcast(1.f), sixth = broadcast(1.f / 6);
  switch (kKind) {
    case Activation::kRelu:
      return relu(x);
    case Activation::kRelu6:
      return clamp(x, 0, 6);
    case Activation::kSigmoid:
      return reciprocal(one + exponential(-x));
    case Activation::kHardSigmoid:
      return clamp(x + broadcast(3.f), 0, 6) * sixth;
    case Activation::kSilu:
      return x * reciprocal(one + exponential(-x));
    case Activation::kHardSwish:
      return x * clamp(x + broadcast(3.f), 0, 6) * sixth;
    case Activation::kTanh:
      for (int i = 0; i < kLanes; ++i) x[i] = __builtin_tanhf(x[i]);
      return x;
    default:
      return x;
  }
}

// Calls visit(Kind<activation>()): a loop that asks for the activation of each vector takes four times as long.
template <Activation kKind>
struct Kind {
  static constexpr Activation value = kKind;
};
template <class Visit>
static inline void with_activation(Activation activation, Visit visit) {
  switch (activation) {
#define DSN_ACTIVATION(id, name) \
  case Activation::id:           \
    return visit(Kind<Activation::id>());
#include "../plan/instructions.def"
  }
}

// Loads the lanes whose bit is set, zero elsewhere.
#if DSN_VECTOR_BYTES == 64
typedef __mmask16 Mask;
static inline Mask make_mask(uint32_t bits) { return (Mask)bits; }
static inline vec load_masked(const float* p, Mask m) { return (vec)_mm512_maskz_loadu_ps(m, p); }
static inline vec keep(vec x, Mask m) { return (vec)_mm512_maskz_mov_ps(m, (__m512)x); }
static inline vec choose(Mask m, vec a, vec b) { return (vec)_mm512_mask_mov_ps((__m512)b, m, (__m512)a); }
static inline void store_first(float* p, vec x, int n) {
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x);
}
#else
typedef ivec Mask;
static inline Mask make_mask(uint32_t bits) {
  ivec lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = 1 << i;
  return (lane & (int32_t)bits) != 0;
}
static inline vec keep(vec x, Mask m) { return (vec)((ivec)x & m); }
static inline vec choose(Mask m, vec a, vec b) { return (vec)(((ivec)a & m) | ((ivec)b & ~m)); }
static inline vec load_masked(const float* p, Mask m) { return keep(load(p), m); }
static inline void store_first(float* p, vec x, int n) {
#if DSN_VECTOR_BYTES == 32
  _mm256_maskstore_ps(p, (__m256i)make_mask((1u << n) - 1), (__m256)x);
#else
  for (int i = 0; i < n; ++i) p[i] = x[i];
#endif
}
#endif

// The sum of the lanes, halving.
static inline float sum(vec v) {
#if DSN_VECTOR_BYTES == 64
  v += __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
#elif DSN_VECTOR_BYTES == 32
  v += __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
#endif
  return (v[0] + v[2]) + (v[1] + v[3]);
}

#ifdef DSN_PAIRS  // a pair of channels stands in the place of a channel
#include "bfloat16_impl.h"
#endif

template <int Rows, int Vectors>
static inline
    __attribute__((always_inline)) void fma_block(vec (&acc)[Rows][Vectors], const vec (&x)[Vectors], const float* w) {
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) {
#ifdef DSN_PAIRS
    const vec wm = broadcast_word(w + m);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) acc[m][v] = dot_pairs(acc[m][v], wm, x[v]);
#else
    vec wm = broadcast(w[m]);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) acc[m][v] += wm * x[v];
#endif
  }
}

// Some pixels of a channel, from `lane` on, after BN-ReLU.
static inline vec normalised(const ConvTile& t, int channel, int lane) {
  return relu(load(t.state + (int64_t)channel * kTile + lane) * broadcast(t.scale[channel]) +
              broadcast(t.shift[channel]));
}

// `Rows` outputs from row0 on, whose weights begin at `weight`, at `Vectors` vectors of a tile's pixels.
// Normalise: the first row block of a 1x1 reads the state, normalises it on the way and leaves src for the others.
template <int Rows, int Vectors, int Taps, bool Normalise, int Stride = 1>
static void conv_block(const ConvTile& t, int tile, int row0, const float* weight, int first_lane) {
  vec acc[Rows][Vectors];
  const int rows = t.out_channels - row0 < Rows ? t.out_channels - row0 : Rows;
  auto row = [&](int m) { return t.rows ? t.rows[row0 + m] : row0 + m; };
  float* const dst0 = t.dst + tile * t.dst_tile + first_lane;
  auto dst = [&](int m, int v) { return dst0 + row(m) * t.dst_stride + v * kLanes; };
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) {
    vec init = t.bias ? broadcast(t.bias[row0 + m]) : vec{};
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) acc[m][v] = init;
  }

  Mask left[Vectors], right[Vectors];
  if constexpr (Taps == 9) {
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      left[v] = make_mask(t.edge[2 * tile] >> (first_lane + v * kLanes));
      right[v] = make_mask(t.edge[2 * tile + 1] >> (first_lane + v * kLanes));
    }
  }
  float* const first = t.src + tile * t.src_tile + first_lane;
  const int64_t weight_step = Taps * t.tap_stride;
  vec x[Vectors];
  auto add_channel = [&](int i, float* src, const float* w) __attribute__((always_inline)) {
    if constexpr (Taps == 1) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        if constexpr (Normalise) {
#ifdef DSN_PAIRS
          x[v] = make_pairs(normalised(t, t.state_rows[2 * i], first_lane + v * kLanes),
                            normalised(t, t.state_rows[2 * i + 1], first_lane + v * kLanes));
#else
          x[v] = normalised(t, t.live[i], first_lane + v * kLanes);
#endif
          store(src + v * kLanes, x[v]);
        } else {
          x[v] = load(src + v * kLanes);
        }
      }
      fma_block<Rows, Vectors>(acc, x, w);
    } else {
#pragma GCC unroll 3
      for (int dy = 0; dy < 3; ++dy) {
        const float *before, *at, *after;  // the taps to the left, in the middle and to the right
        if constexpr (Stride == 1) {
          at = src + (dy - 1) * t.width;
          before = at - 1;
          after = at + 1;
          // The patch streams from L2; without this 3x3 runs at 117 instead of 128 GFLOP/s at width 32.
          __builtin_prefetch(at + 3 * t.src_stride);
          __builtin_prefetch(at + 3 * t.src_stride + 16);
        } else {
          at = src + (dy == 1 ? 0 : 2 * t.plane_stride) - (dy == 0 ? t.width : 0);
          after = at + t.plane_stride;
          before = after - 1;
        }
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) x[v] = load_masked(before + v * kLanes, left[v]);
        fma_block<Rows, Vectors>(acc, x, w);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) x[v] = load(at + v * kLanes);
        fma_block<Rows, Vectors>(acc, x, w + t.tap_stride);
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v)
          x[v] = Stride == 1 ? load_masked(after + v * kLanes, right[v]) : load(after + v * kLanes);
        fma_block<Rows, Vectors>(acc, x, w + 2 * t.tap_stride);
        w += 3 * t.tap_stride;
      }
    }
  };
  auto weight_at = [&](int i) { return weight + (t.weight_at ? t.weight_at[i] : i * weight_step); };
  float* src = first;
  if constexpr (Taps == 9) {
    for (int i = 0; i < t.live_count; ++i, src += t.src_stride) add_channel(i, src, weight_at(i));
  } else if (t.src_rows) {
    for (int i = 0; i < t.live_count; ++i) add_channel(i, first + t.src_rows[i] * t.src_stride, weight_at(i));
  } else if (t.weight_at) {  // a 1x1 is as fast as its loop is short
#pragma GCC unroll 2
    for (int i = 0; i < t.live_count; ++i, src += t.src_stride) add_channel(i, src, weight + t.weight_at[i]);
  } else {
    const float* w = weight;
#pragma GCC unroll 2
    for (int i = 0; i < t.live_count; ++i, src += t.src_stride, w += weight_step) {
      __builtin_prefetch(w + t.block_stride);  // the next block's, which may be far away
      add_channel(i, src, w);
    }
  }

  if (t.accumulate) {
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      if (m < rows) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) acc[m][v] += load(dst(m, v));
      }
    }
  }
  if (t.relu) {
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m)
      if (!t.relu_channels || row0 + m < t.relu_channels)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) acc[m][v] = t.relu6 ? clamp(acc[m][v], 0, 6) : relu(acc[m][v]);
  }
  if (t.valid < kTile && tile + 1 == t.tiles) {
    const uint32_t bits = (1u << t.valid) - 1;
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      Mask exists = make_mask(bits >> (first_lane + v * kLanes));
#pragma GCC unroll 16
      for (int m = 0; m < Rows; ++m) acc[m][v] = keep(acc[m][v], exists);
    }
  }
#ifdef DSN_PAIRS
  if (Rows % 2 == 0 && t.dst_pairs) {
#pragma GCC unroll 16
    for (int m = 0; m < Rows; m += 2)
      if (m < rows)
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v)
          store(dst0 + (row0 + m) / 2 * t.dst_stride + v * kLanes, make_pairs(acc[m][v], acc[(m + 1) % Rows][v]));
    return;
  }
#endif
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) {
    if (m < rows) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) store(dst(m, v), acc[m][v]);
    }
  }
  if (t.sums) {
#pragma GCC unroll 16
    for (int m = 0; m < Rows; ++m) {
      if (m < rows) {
        vec total = acc[m][0];
#pragma GCC unroll 4
        for (int v = 1; v < Vectors; ++v) total += acc[m][v];
        t.sums[tile * t.sums_tile + row(m)] += sum(total);
      }
    }
  }
}

// A block of `Rows` outputs at two vectors of pixels at a time, in `Parts` parts: where the registers hold the block at
// one vector only, half of it at two takes 8 loads for 12 products instead of 13. Parts = 0: one vector only.
template <int Rows, int Parts, int Taps, int Stride>
static void conv_rows(const ConvTile& t) {
  const int blocks = (t.out_channels + Rows - 1) / Rows;
  for (int i = 0; i < t.tiles; ++i) {
    // Of a last tile, as of a 14 x 14 map, only the vectors that hold pixels.
    const int lanes = i + 1 < t.tiles ? kTile : (t.valid + kLanes - 1) / kLanes * kLanes;
    if (lanes < kTile && !t.accumulate)
      for (int m = 0; m < (t.dst_pairs ? (t.out_channels + 1) / 2 : t.out_channels); ++m)
        for (int lane = lanes; lane < kTile; lane += kLanes)
          store(t.dst + i * t.dst_tile + (t.rows ? t.rows[m] : m) * t.dst_stride + lane, vec{});
    for (int b = 0; b < blocks; ++b) {
      const float* const weight = t.weight + b * t.block_stride;
      const bool normalise = Taps == 1 && b == 0 && t.state;
      int lane = 0;
      if constexpr (Parts > 0) {
        constexpr int kPart = Rows / Parts;
        for (; lane + 2 * kLanes <= lanes; lane += 2 * kLanes)
          for (int row = 0; row < Rows && b * Rows + row < t.out_channels; row += kPart)
            if (normalise && row == 0)
              conv_block<kPart, 2, Taps, Taps == 1>(t, i, b * Rows, weight, lane);
            else
              conv_block<kPart, 2, Taps, false, Stride>(t, i, b * Rows + row, weight + row, lane);
      }
      for (; lane < lanes; lane += kLanes)
        if (normalise)
          conv_block<Rows, 1, Taps, Taps == 1>(t, i, b * Rows, weight, lane);
        else
          conv_block<Rows, 1, Taps, false, Stride>(t, i, b * Rows, weight, lane);
    }
  }
}

// 32 vector registers hold 24 accumulators; 16 hold 12, those of odd blocks at one vector.
template <int Taps, int Stride = 1>
static void conv_tile(const ConvTile& t) {
  constexpr bool kMany = DSN_VECTOR_BYTES == 64;
  if (t.sums)
    for (int i = 0; i < t.tiles; ++i)
      for (int m = 0; m < t.out_channels; ++m) t.sums[i * t.sums_tile + (t.rows ? t.rows[m] : m)] = 0;
  switch (t.row_block) {
    case 12:
      return conv_rows<12, kMany ? 1 : 2, Taps, Stride>(t);
    case 10:
      return conv_rows<10, kMany ? 1 : 2, Taps, Stride>(t);
    case 8:
      return conv_rows<8, kMany ? 1 : 2, Taps, Stride>(t);
    case 6:
      return conv_rows<6, 1, Taps, Stride>(t);
    case 4:
      return conv_rows<4, 1, Taps, Stride>(t);
    case 11:
      return conv_rows<11, kMany ? 1 : 0, Taps, Stride>(t);
    case 9:
      return conv_rows<9, kMany ? 1 : 0, Taps, Stride>(t);
    case 7:
      return conv_rows<7, kMany ? 1 : 0, Taps, Stride>(t);
    case 5:
      return conv_rows<5, 1, Taps, Stride>(t);
  }
}
