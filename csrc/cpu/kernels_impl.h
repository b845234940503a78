// The micro-kernels, written once over GCC vector types and compiled once per instruction set.
// The including file sets DSN_VECTOR_BYTES, the target pragma and the namespace.

#include "conv_impl.h"

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
  int i = 0;
#if DSN_VECTOR_BYTES == 32
  const vec scales = broadcast(scale ? *scale : 1.f), shifts = broadcast(scale ? *shift : 0.f);
  for (; i + kLanes <= count; i += kLanes) {
    const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(offset + i));
    const Mask inside = (ivec)at >= 0;
    vec x = (vec)_mm256_mask_i32gather_ps(_mm256_setzero_ps(), src, at, (__m256)inside, 4);
    if (scale) x = keep(relu(x * scales + shifts), inside);
    store(dst + i, x);
  }
#endif
  const float s = scale ? *scale : 1.f, b = scale ? *shift : 0.f;
  for (; i < count; ++i) {
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

// Every second lane, from the first or the second on.
static inline vec even_lanes(vec a, vec b) {
#if DSN_VECTOR_BYTES == 64
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
#elif DSN_VECTOR_BYTES == 32
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
#else
  return __builtin_shufflevector(a, b, 0, 2, 4, 6);
#endif
}
static inline vec odd_lanes(vec a, vec b) {
#if DSN_VECTOR_BYTES == 64
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif DSN_VECTOR_BYTES == 32
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
  return __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
}

// Sums of neighbouring lanes: [a0+a1, a2+a3, ..., b0+b1, ...].
static inline vec pair_sums(vec a, vec b) { return even_lanes(a, b) + odd_lanes(a, b); }

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

static void spread(const Spread& s) {
  const vec around = broadcast(s.around);
  for (int c = 0; c < s.count; ++c) {
    const int channel = s.channels[c];
    const float* const src = s.src + channel * s.src_stride;
    float* const dst = s.dst + c * s.dst_stride;
    const vec scale = broadcast(s.scale && channel >= 0 ? s.scale[channel] : 1.f);
    const vec shift = broadcast(s.scale && channel >= 0 ? s.shift[channel] : 0.f);
    auto value = [&](const float* from, int count) __attribute__((always_inline)) {
      vec x;
      if (s.stride == 1) {
        x = load(from);
      } else if (s.stride == 2) {
        x = even_lanes(load(from), load(from + kLanes));
      } else {
        x = around;
        for (int k = 0; k < kLanes && k < count; ++k) x[k] = from[k * s.stride];
      }
      return s.scale ? relu(x * scale + shift) : x;
    };
    for (const PixelRange* range = s.ranges; range < s.ranges + s.range_count; ++range) {
      const float* from = src + range->from;
      float* to = dst + range->to;
      int left = range->count;
      for (; left >= kLanes; left -= kLanes, from += kLanes * s.stride, to += kLanes)
        store(to, channel < 0 ? around : value(from, left));
      if (left) store(to, channel < 0 ? around : choose(make_mask((1u << left) - 1), value(from, left), around));
    }
  }
}

// Calls values(from) for each vector of the ranges and stores what it gives.
template <class Values>
static inline __attribute__((always_inline)) void over_runs(const Slide& s, Values values) {
  const PixelRange* const end = s.ranges + s.range_count;
  for (const PixelRange* range = s.ranges; range < end; ++range) {
    float* to = s.dst + range->to;
    int i = 0;
    for (; i + kLanes <= range->count; i += kLanes) store(to + i, values(range->from + i));
    if (i == range->count) continue;
    // The next range overwrites what is too much, if that still lies in the tile.
    const bool followed = range + 1 < end && range[1].to == range->to + range->count;
    if (followed && (range->to + i) % kTile + kLanes <= kTile)
      store(to + i, values(range->from + i));
    else
      store_first(to + i, values(range->from + i), range->count - i);
  }
}

// kTaps: of the window, so that its weights stay in registers; 0: any.
template <int kTaps, Activation kKind>
static void slide_window(const Slide& s) {
  vec weight[kTaps ? kTaps : 1];
  for (int t = 0; t < kTaps; ++t) weight[t] = broadcast(s.weight[t * s.weight_stride]);
  int offset[kTaps ? kTaps : 1];
  for (int t = 0; t < kTaps; ++t) offset[t] = s.offset[t];
  const vec bias = broadcast(s.bias);
  over_runs(s, [&](int at) __attribute__((always_inline)) {
    const float* from = s.plane + at;
    vec total = bias;
    if constexpr (kTaps > 0) {
#pragma GCC unroll 32
      for (int t = 0; t < kTaps; ++t) total += weight[t] * load(from + offset[t]);
    } else {
      for (int t = 0; t < s.taps; ++t) total += broadcast(s.weight[t * s.weight_stride]) * load(from + s.offset[t]);
    }
    return activate<kKind>(total);
  });
}

static void slide(const Slide& s) {
  with_activation(s.activation, [&](auto kind) {
    constexpr Activation k = decltype(kind)::value;
    s.taps == 9 ? slide_window<9, k>(s) : s.taps == 25 ? slide_window<25, k>(s) : slide_window<0, k>(s);
  });
}

static void pool(const Slide& s) {
  if (s.divisor)
    return over_runs(s, [&](int at) __attribute__((always_inline)) {
      vec total = load(s.plane + at + s.offset[0]);
      for (int t = 1; t < s.taps; ++t) total += load(s.plane + at + s.offset[t]);
      return total / load(s.divisor + at);
    });
  over_runs(s, [&](int at) __attribute__((always_inline)) {
    vec most = load(s.plane + at + s.offset[0]);
    for (int t = 1; t < s.taps; ++t) {
      const vec x = load(s.plane + at + s.offset[t]);
      most = x > most ? x : most;
    }
    return most;
  });
}

template <int kSide, Activation kKind>
static void flat_window_of(const FlatWindow& f) {
  constexpr int kTaps = kSide * kSide, kVectors = 2;
  static const uint32_t all = ~0u;
  const uint32_t* inside[kSide];
  int64_t step[kSide];
#pragma GCC unroll 5
  for (int column = 0; column < kSide; ++column) {
    inside[column] = f.inside[column] ? f.inside[column] : &all;
    step[column] = f.inside[column] ? 1 : 0;
  }
  vec weight[kTaps];
  const float* from[kTaps];
#pragma GCC unroll 25
  for (int tap = 0; tap < kTaps; ++tap) {
    weight[tap] = broadcast(f.weight[tap * f.weight_stride]);
    from[tap] = f.plane + f.offset[tap];
  }
  const vec bias = broadcast(f.bias);
  for (int64_t t = 0; t < f.tiles; ++t) {
    const int valid = t + 1 < f.tiles ? kTile : f.valid;
    float* const dst = f.dst + t * f.dst_tile;
    for (int lane = 0; lane < kTile; lane += kVectors * kLanes) {
      vec total[kVectors] = {bias, bias};
      const int64_t at = t * kTile + lane;
#pragma GCC unroll 5
      for (int column = 0; column < kSide; ++column) {
        const uint32_t bits = inside[column][t * step[column]] >> lane;
        const Mask low = make_mask(bits), high = make_mask(bits >> kLanes);
#pragma GCC unroll 5
        for (int row = 0; row < kSide; ++row) {
          const int tap = row * kSide + column;
          total[0] += weight[tap] * load_masked(from[tap] + at, low);
          total[1] += weight[tap] * load_masked(from[tap] + at + kLanes, high);
        }
      }
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        const int first = lane + v * kLanes;
        const vec x = activate<kKind>(total[v]);
        store(dst + first, valid == kTile  ? x
                           : first < valid ? keep(x, make_mask(((1u << valid) - 1) >> first))
                                           : vec{});
      }
    }
  }
}

static void flat_window(const FlatWindow& f) {
  with_activation(f.activation, [&](auto kind) {
    constexpr Activation k = decltype(kind)::value;
    f.side == 3 ? flat_window_of<3, k>(f) : flat_window_of<5, k>(f);
  });
}

static void unzip(const Unzip& u) {
  for (int p = 0; p < u.piece_count; ++p) {
    const Alternate& piece = u.pieces[p];
    for (int c = 0; c < u.count; ++c) {
      const int channel = u.channels[c];
      const float* const from = u.src + (int64_t)channel * kTile + piece.from;
      float* const first = u.dst + c * u.dst_stride + piece.first;
      float* const second = u.dst + c * u.dst_stride + piece.second;
      const vec s = broadcast(u.scale ? u.scale[channel] : 1.f), b = broadcast(u.scale ? u.shift[channel] : 0.f);
      for (int i = 0; i < piece.count; i += 2 * kLanes) {
        vec low = load(from + i), high = load(from + i + kLanes);
        if (u.scale) {
          low = relu(low * s + b);
          high = relu(high * s + b);
        }
        const int left = piece.count - i;
        if (piece.whole || left >= 2 * kLanes) {
          store(first + i / 2, even_lanes(low, high));
          store(second + i / 2, odd_lanes(low, high));
        } else {
          store_first(first + i / 2, even_lanes(low, high), (left + 1) / 2);
          store_first(second + i / 2, odd_lanes(low, high), left / 2);
        }
      }
    }
  }
}

static void activate_rows(float* data, int rows, int count, Activation activation, float* sums) {
  with_activation(activation, [&](auto kind) {
    for (int r = 0; r < rows; ++r, data += kTile) {
      vec total{};
#pragma GCC unroll 4
      for (int i = 0; i < kTile; i += kLanes) {
        vec x = activate<decltype(kind)::value>(load(data + i));
        if (count < kTile) x = keep(x, make_mask(((1u << count) - 1) >> i));
        store(data + i, x);
        total += x;
      }
      if (sums) sums[r] = sum(total);
    }
  });
}

static void row_sums(const float* src, const int* rows, int count, float* sums) {
  for (int r = 0; r < count; ++r) {
    const float* row = src + (int64_t)rows[r] * kTile;
    vec total = load(row);
#pragma GCC unroll 8
    for (int i = kLanes; i < kTile; i += kLanes) total += load(row + i);
    sums[rows[r]] = sum(total);
  }
}

static void blend(const Blend& b) {
  with_activation(b.activation, [&](auto kind) {
    for (int c = 0; c < b.channels; ++c) {
      const float f = b.factor ? b.factor[c] : 1.f;
      const vec scale = broadcast(b.scale ? f * b.scale[c] : f), shift = broadcast(b.shift ? f * b.shift[c] : 0.f);
      const float* src = b.src + c * kTile;
      float* dst = b.dst + c * kTile;
#pragma GCC unroll 4
      for (int i = 0; i < kTile; i += kLanes) {
        vec x = b.holds[c] ? load(src + i) * scale + shift : shift;
        if (b.accumulate) x += load(dst + i);
        x = activate<decltype(kind)::value>(x);
        store(dst + i, b.count < kTile ? keep(x, make_mask(((1u << b.count) - 1) >> i)) : x);
      }
    }
  });
}

#include "winograd_impl.h"

static constexpr Kernels table(const char* name) {
  return {name,   conv_tile<1>,   conv_tile<9>,   conv_tile<9, 2>, winograd3x3, normalise,   gather, pick,
          select, normalised_sum, normalise_pool, bilinear,        copy_rows,   zero_rows,   dot,    spread,
          slide,  pool,           activate_rows,  row_sums,        blend,       flat_window, unzip};
}
