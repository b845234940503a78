// The micro-kernels, written once over GCC vector types and compiled once per instruction set.
// The including file sets DSN_VECTOR_BYTES, the target pragma and the namespace.
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

// Loads the lanes whose bit is set, zero elsewhere.
#if DSN_VECTOR_BYTES == 64
typedef __mmask16 Mask;
static inline Mask make_mask(uint32_t bits) { return (Mask)bits; }
static inline vec load_masked(const float* p, Mask m) { return (vec)_mm512_maskz_loadu_ps(m, p); }
static inline vec keep(vec x, Mask m) { return (vec)_mm512_maskz_mov_ps(m, (__m512)x); }
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
static inline vec load_masked(const float* p, Mask m) { return keep(load(p), m); }
static inline void store_first(float* p, vec x, int n) {
  for (int i = 0; i < n; ++i) p[i] = x[i];
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

template <int Rows, int Vectors>
static inline __attribute__((always_inline)) void fma_block(vec (&acc)[Rows][Vectors], const vec (&x)[Vectors],
                                                            const float* w) {
#pragma GCC unroll 16
  for (int m = 0; m < Rows; ++m) {
    vec wm = broadcast(w[m]);
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) acc[m][v] += wm * x[v];
  }
}

// Normalise: the first row block of a 1x1 reads the state, normalises it on the way and leaves src for the others.
template <int Rows, int Vectors, int Taps, bool Normalise, int Stride = 1>
static void conv_block(const ConvTile& t, int tile, int block, int first_lane) {
  vec acc[Rows][Vectors];
  const int row0 = block * Rows;
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
  const float* block_weight = t.weight + block * t.block_stride;
  float* const first = t.src + tile * t.src_tile + first_lane;
  for (int i = 0; i < t.live_count; ++i) {
    const int c = t.live[i];
    float* src = first + (Taps == 1 && t.src_rows ? t.src_rows[i] : i) * t.src_stride;
    const float* w = block_weight + c * Taps * t.tap_stride;
    vec x[Vectors];
    if constexpr (Taps == 1) {
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) {
        if constexpr (Normalise) {
          const float* raw = t.state + (int64_t)c * kTile + first_lane;
          x[v] = relu(load(raw + v * kLanes) * broadcast(t.scale[c]) + broadcast(t.shift[c]));
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
        for (int v = 0; v < Vectors; ++v) acc[m][v] = relu(acc[m][v]);
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

template <int Rows, int Vectors, int Taps, int Stride>
static void conv_rows(const ConvTile& t) {
  const int blocks = (t.out_channels + Rows - 1) / Rows;
  for (int i = 0; i < t.tiles; ++i) {
    // A last tile that is less than half full, of a 14 x 14 map, takes half of the time.
    const bool half = Vectors * kLanes == kTile && i + 1 == t.tiles && t.valid <= kTile / 2;
    if (half && !t.accumulate)
      for (int m = 0; m < t.out_channels; ++m)
        store(t.dst + i * t.dst_tile + (t.rows ? t.rows[m] : m) * t.dst_stride + kTile / 2, vec{});
    for (int b = 0; b < blocks; ++b)
      for (int lane = 0; lane < kTile; lane += Vectors * kLanes) {
        if (Taps == 1 && b == 0 && t.state)
          conv_block<Rows, Vectors, Taps, Taps == 1>(t, i, b, lane);
        else if (half)
          conv_block<Rows, (Vectors + 1) / 2, Taps, false, Stride>(t, i, b, lane);
        else
          conv_block<Rows, Vectors, Taps, false, Stride>(t, i, b, lane);
      }
  }
}

// 32 vector registers hold 24 accumulators; 16 hold 12.
template <int Taps, int Stride = 1>
static void conv_tile(const ConvTile& t) {
  constexpr int kFew = DSN_VECTOR_BYTES == 64 ? 2 : 1;
  if (t.sums)
    for (int i = 0; i < t.tiles; ++i)
      for (int m = 0; m < t.out_channels; ++m) t.sums[i * t.sums_tile + (t.rows ? t.rows[m] : m)] = 0;
  switch (t.row_block) {
    case 12:
      return conv_rows<12, kFew, Taps, Stride>(t);
    case 11:
      return conv_rows<11, kFew, Taps, Stride>(t);
    case 10:
      return conv_rows<10, kFew, Taps, Stride>(t);
    case 9:
      return conv_rows<9, kFew, Taps, Stride>(t);
    case 8:
      return conv_rows<8, kFew, Taps, Stride>(t);
    case 7:
      return conv_rows<7, kFew, Taps, Stride>(t);
    case 6:
      return conv_rows<6, 2, Taps, Stride>(t);
    case 5:
      return conv_rows<5, 2, Taps, Stride>(t);
    default:
      return conv_rows<4, 2, Taps, Stride>(t);
  }
}

static void normalise(const float* src, const int* live, int live_count, const float* scale, const float* shift,
                      float* dst, int64_t dst_stride) {
  for (int l = 0; l < live_count; ++l, dst += dst_stride) {
    const int c = live[l];
    const vec s = broadcast(scale[c]), b = broadcast(shift[c]);
#pragma GCC unroll 8
    for (int i = 0; i < kTile; i += kLanes) store(dst + i, relu(load(src + (int64_t)c * kTile + i) * s + b));
  }
}

static void gather(const float* src, int64_t tile_stride, const int* live, int live_count, int begin, int end,
                   const float* scale, const float* shift, float* dst, int64_t dst_stride) {
  for (int next; begin < end; dst += next - begin, begin = next) {
    next = begin / kTile * kTile + kTile;
    if (next > end) next = end;
    const float* from = src + begin / kTile * tile_stride + begin % kTile;
    const int whole = (next - begin) / kLanes * kLanes, rest = next - begin - whole;
    if (!scale && whole == kTile) {
      for (int l = 0; l < live_count; ++l)
#pragma GCC unroll 8
        for (int i = 0; i < kTile; i += kLanes) store(dst + l * dst_stride + i, load(from + live[l] * kTile + i));
      continue;
    }
    for (int l = 0; l < live_count; ++l) {
      const float* pixels = from + live[l] * kTile;
      const vec s = broadcast(scale ? scale[live[l]] : 1.f), b = broadcast(scale ? shift[live[l]] : 0.f);
      float* to = dst + l * dst_stride;
      auto value = [&](int i) { return scale ? relu(load(pixels + i) * s + b) : load(pixels + i); };
      for (int i = 0; i < whole; i += kLanes) store(to + i, value(i));
      if (rest) store_first(to + whole, value(whole), rest);
    }
  }
}

static void pick(const float* src, const int* offset, int count, const float* scale, const float* shift, float* dst) {
#if DSN_VECTOR_BYTES == 64
  const vec s = broadcast(scale ? *scale : 1.f), b = broadcast(scale ? *shift : 0.f);
  for (int i = 0; i < count; i += kLanes) {
    const auto some = (__mmask16)(count - i < kLanes ? (1u << (count - i)) - 1 : 0xffff);
    const __m512i at = _mm512_maskz_loadu_epi32(some, offset + i);
    const __mmask16 inside = _mm512_mask_cmpge_epi32_mask(some, at, _mm512_setzero_si512());
    vec x = (vec)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), inside, at, src, 4);
    if (scale) x = keep(relu(x * s + b), inside);
    _mm512_mask_storeu_ps(dst + i, some, (__m512)x);
  }
#else
  const float s = scale ? *scale : 1.f, b = scale ? *shift : 0.f;
  for (int i = 0; i < count; ++i) {
    float x = 0;
    if (offset[i] >= 0) {
      x = src[offset[i]];
      if (scale) x = x * s + b < 0 ? 0.f : x * s + b;
    }
    dst[i] = x;
  }
#endif
}

static void select(const float* weight, int64_t stride, const int* live, int live_count, int taps, const uint8_t* keep,
                   int out, float* dst, int64_t dst_stride) {
#if DSN_VECTOR_BYTES == 64
  constexpr int kPanel = 64;  // vectors of filters whose masks are kept at hand
  for (int kept = 0, done = 0; done < out; done += kPanel * kLanes) {
    const int vectors = ((out - done < kPanel * kLanes ? out - done : kPanel * kLanes) + kLanes - 1) / kLanes;
    __mmask16 mask[kPanel];
    int place[kPanel];
    for (int v = 0; v < vectors; ++v) {
      const int first = done + v * kLanes, n = out - first < kLanes ? out - first : kLanes;
      const __m128i bytes = _mm_maskz_loadu_epi8((__mmask16)((1u << n) - 1), keep + first);
      mask[v] = _mm_test_epi8_mask(bytes, bytes);
      place[v] = kept;
      kept += __builtin_popcount(mask[v]);
    }
    float* to = dst;
    for (int l = 0; l < live_count; ++l) {
      const float* from = weight + (int64_t)live[l] * taps * stride + done;
      for (int t = 0; t < taps; ++t, from += stride, to += dst_stride)
        for (int v = 0; v < vectors; ++v)
          store(to + place[v], (vec)_mm512_maskz_compress_ps(mask[v], (__m512)load(from + v * kLanes)));
    }
  }
#else
  for (int64_t row = 0; row < (int64_t)live_count * taps; ++row) {
    const float* from = weight + (live[row / taps] * taps + row % taps) * stride;
    float* to = dst + row * dst_stride;
    for (int m = 0; m < out; ++m)
      if (keep[m]) *to++ = from[m];
  }
#endif
}

// sum over the map's pixels of relu(scale * src + shift); tiles are tile_stride floats apart
static float normalised_sum(const float* src, int64_t tile_stride, int pixels, float scale, float shift) {
  const vec s = broadcast(scale), b = broadcast(shift);
  vec total{};
  for (; pixels > 0; pixels -= kTile, src += tile_stride)
#pragma GCC unroll 8
    for (int i = 0; i < kTile; i += kLanes) {
      vec x = relu(load(src + i) * s + b);
      if (pixels < kTile) x = keep(x, make_mask(((1u << pixels) - 1) >> i));
      total += x;
    }
  return sum(total);
}

// Sums of neighbouring lanes: [a0+a1, a2+a3, ..., b0+b1, ...].
static inline vec pair_sums(vec a, vec b) {
#if DSN_VECTOR_BYTES == 64
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif DSN_VECTOR_BYTES == 32
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
  return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
}

// The sum of two rows' pixels at one place, normalised.
static inline vec two_rows(const float* top, const float* bottom, vec s, vec b) {
  return relu(load(top) * s + b) + relu(load(bottom) * s + b);
}

// Sums of two rows' pixels, a vector at a time, in the order of the output; rows hold whole vectors.
struct RowSums {
  const float* src;
  int64_t tile_stride;
  int top, column, width;
  vec scale, shift;
  const float* at(int pixel) const { return src + pixel / kTile * tile_stride + pixel % kTile; }
  vec next() {
    vec sums = two_rows(at(top + column), at(top + width + column), scale, shift);
    column += kLanes;
    if (column == width) column = 0, top += 2 * width;
    return sums;
  }
};

static void normalise_pool(const float* src, int64_t tile_stride, int begin, int width, int count, float scale,
                           float shift, float* scratch, float* dst) {
  const vec s = broadcast(scale), b = broadcast(shift);
  if (width % kLanes == 0) {
    RowSums sums{src, tile_stride, begin, 0, width, s, b};
    const vec quarter = broadcast(0.25f);
    for (int i = 0; i < count; i += kLanes) {
      const vec low = sums.next(), high = 2 * (count - i) > kLanes ? sums.next() : vec{};
      store(dst + i, quarter * pair_sums(low, high));
    }
    return;
  }
  // Any other width: rows in one piece, sums of two rows, then of neighbours; whole vectors, so some overrun.
  const int out_width = width / 2, rows = (count + out_width - 1) / out_width * 2;
  const int end = begin + rows * width, first_tile = begin / kTile;
  float *plane = scratch, *sums = scratch + (end - first_tile * kTile + 2 * kTile);
  for (int t = first_tile; t * kTile < end; ++t)
    for (int i = 0; i < kTile; i += kLanes)
      store(plane + (t - first_tile) * kTile + i, load(src + t * tile_stride + i));
  const float* top = plane + (begin - first_tile * kTile);
  for (int y = 0; y < rows / 2; ++y, top += 2 * width)
    for (int x = 0; x < width; x += kLanes) store(sums + y * width + x, two_rows(top + x, top + width + x, s, b));
  if (width % 2 == 0) {
    for (int i = 0; i < count; ++i) dst[i] = 0.25f * (sums[2 * i] + sums[2 * i + 1]);
    return;
  }
  for (int i = 0; i < count; ++i) {
    const float* pair = sums + i / out_width * width + i % out_width * 2;
    dst[i] = 0.25f * (pair[0] + pair[1]);
  }
}

// `wide` rows of the source resized horizontally, then blended vertically.
static void bilinear(const float* src, int src_width, int dst_width, const Taps& columns, const Taps& rows, int first,
                     int last, float* wide, float* dst) {
  const bool in_register = src_width <= kLanes && dst_width % kLanes == 0;
  for (int y = rows.low[first]; y <= rows.high[last - 1]; ++y) {
    const float* row = src + y * src_width;
    float* to = wide + y * dst_width;
    if (in_register) {
      const vec pixels = load(row);
      for (int x = 0; x < dst_width; x += kLanes) {
        const vec low = __builtin_shuffle(pixels, *reinterpret_cast<const ivec_unaligned*>(columns.low + x));
        const vec high = __builtin_shuffle(pixels, *reinterpret_cast<const ivec_unaligned*>(columns.high + x));
        store(to + x, low + load(columns.weight + x) * (high - low));
      }
    } else {
      for (int x = 0; x < dst_width; ++x) {
        const float low = row[columns.low[x]];
        to[x] = low + columns.weight[x] * (row[columns.high[x]] - low);
      }
    }
  }
  for (int y = first; y < last; ++y, dst += dst_width) {
    const float *low = wide + rows.low[y] * dst_width, *high = wide + rows.high[y] * dst_width;
    const vec weight = broadcast(rows.weight[y]);
    for (int x = 0; x < dst_width; x += kLanes) {
      const vec l = load(low + x);
      store(dst + x, l + weight * (load(high + x) - l));
    }
  }
}

static void copy_rows(const float* src, int64_t src_stride, float* dst, int64_t dst_stride, int rows, int n) {
  const int whole = n / kLanes * kLanes, rest = n - whole;
  if (whole == 2 * kLanes && rest == 0) {  // a tile, or a row of a 32-pixel map
    for (; rows > 0; --rows, src += src_stride, dst += dst_stride) {
      vec a = load(src), b = load(src + kLanes);
      store(dst, a);
      store(dst + kLanes, b);
    }
    return;
  }
  for (; rows > 0; --rows, src += src_stride, dst += dst_stride) {
    for (int i = 0; i < whole; i += kLanes) store(dst + i, load(src + i));
    if (rest) store_first(dst + whole, load(src + whole), rest);
  }
}

static void zero_rows(float* dst, int64_t stride, int rows, int n) {
  const int whole = n / kLanes * kLanes, rest = n - whole;
  for (; rows > 0; --rows, dst += stride) {
    for (int i = 0; i < whole; i += kLanes) store(dst + i, vec{});
    if (rest) store_first(dst + whole, vec{}, rest);
  }
}

static float dot(const float* a, const float* b, int n) {
  vec acc{};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) acc += load(a + i) * load(b + i);
  float s = sum(acc);
  for (; i < n; ++i) s += a[i] * b[i];
  return s;
}
