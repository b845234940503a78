// Winograd's F(2x2, 3x3): four outputs of a 3x3 convolution from 16 products instead of 36. Included by
// kernels_impl.h, once per instruction set.
//
// A lane is a patch of 2x2 outputs and the 4x4 inputs around it; 16 lanes, the unit of the transforms, are 64 pixels.
// The transformed map has 4x4 positions. They are worked on a row of positions at a time, so that what is between the
// transforms, a quarter of it, stays in the first cache.

typedef float half __attribute__((vector_size(32)));
typedef float half_unaligned __attribute__((vector_size(32), aligned(4)));
constexpr int kPatches = kWinogradVector;  // lanes of a wide vector

static inline half load_half(const float* p) { return *reinterpret_cast<const half_unaligned*>(p); }
static inline void store_half(float* p, half x) { *reinterpret_cast<half_unaligned*>(p) = x; }

// The constants of __builtin_shufflevector are lanes of the first vector, then of the second.
#if DSN_VECTOR_BYTES == 64
typedef float wide __attribute__((vector_size(64)));
typedef float wide_unaligned __attribute__((vector_size(64), aligned(4)));
typedef int32_t wide_index __attribute__((vector_size(64)));
static inline wide load_wide(const float* p) { return *reinterpret_cast<const wide_unaligned*>(p); }
static inline void store_wide(float* p, wide x) { *reinterpret_cast<wide_unaligned*>(p) = x; }
static inline wide join(half low, half high) {
  return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
static inline half low_half(wide x) { return __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7); }
static inline half high_half(wide x) { return __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15); }
static inline wide evens(wide low, wide high) {
  return __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
static inline wide odds(wide low, wide high) {
  return __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
static inline wide zip_low(wide even, wide odd) {
  return __builtin_shufflevector(even, odd, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
static inline wide zip_high(wide even, wide odd) {
  return __builtin_shufflevector(even, odd, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
static inline wide positive(wide x) { return x < 0.f ? wide{} : x; }  // NaN stays NaN
// The lanes to the left or right of each among kAcross of a row; zero beyond them.
template <int kAcross, int kStep>
static inline wide neighbours(wide x) {
  wide_index lane;
  for (int i = 0; i < kPatches; ++i)
    lane[i] = i % kAcross + kStep < 0 || i % kAcross + kStep >= kAcross ? kPatches : i + kStep;
  return __builtin_shuffle(x, wide{}, lane);
}
// The same within a row of several vectors, of which the neighbouring ones begin, or end, with `beyond`.
template <int kStep>
static inline wide neighbours(wide x, float beyond) {
  const wide other = wide{} + beyond;
  if constexpr (kStep < 0)
    return __builtin_shufflevector(x, other, 16, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14);
  else
    return __builtin_shufflevector(x, other, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16);
}
#else
// Two vectors: a compiler takes shuffles of one that is wider than the registers apart lane by lane.
struct wide {
  half low, high;
};
static inline wide load_wide(const float* p) { return {load_half(p), load_half(p + 8)}; }
static inline void store_wide(float* p, wide x) { store_half(p, x.low), store_half(p + 8, x.high); }
static inline wide join(half low, half high) { return {low, high}; }
static inline half low_half(wide x) { return x.low; }
static inline half high_half(wide x) { return x.high; }
static inline wide operator+(wide a, wide b) { return {a.low + b.low, a.high + b.high}; }
static inline wide operator-(wide a, wide b) { return {a.low - b.low, a.high - b.high}; }
static inline wide evens(wide low, wide high) {
  return {__builtin_shufflevector(low.low, low.high, 0, 2, 4, 6, 8, 10, 12, 14),
          __builtin_shufflevector(high.low, high.high, 0, 2, 4, 6, 8, 10, 12, 14)};
}
static inline wide odds(wide low, wide high) {
  return {__builtin_shufflevector(low.low, low.high, 1, 3, 5, 7, 9, 11, 13, 15),
          __builtin_shufflevector(high.low, high.high, 1, 3, 5, 7, 9, 11, 13, 15)};
}
static inline wide zip(half even, half odd) {
  return {__builtin_shufflevector(even, odd, 0, 8, 1, 9, 2, 10, 3, 11),
          __builtin_shufflevector(even, odd, 4, 12, 5, 13, 6, 14, 7, 15)};
}
static inline wide zip_low(wide even, wide odd) { return zip(even.low, odd.low); }
static inline wide zip_high(wide even, wide odd) { return zip(even.high, odd.high); }
static inline half positive(half x) { return x < 0.f ? half{} : x; }  // NaN stays NaN
static inline wide positive(wide x) { return {positive(x.low), positive(x.high)}; }
// The lanes to the left or right of each among kAcross of a row; zero beyond them.
template <int kAcross, int kStep>
static inline wide neighbours(wide x) {
  const half none{};
  if constexpr (kAcross == 4 && kStep < 0)
    return {__builtin_shufflevector(x.low, none, 8, 0, 1, 2, 8, 4, 5, 6),
            __builtin_shufflevector(x.high, none, 8, 0, 1, 2, 8, 4, 5, 6)};
  else if constexpr (kAcross == 4)
    return {__builtin_shufflevector(x.low, none, 1, 2, 3, 8, 5, 6, 7, 8),
            __builtin_shufflevector(x.high, none, 1, 2, 3, 8, 5, 6, 7, 8)};
  else if constexpr (kStep < 0)
    return {__builtin_shufflevector(x.low, none, 8, 0, 1, 2, 3, 4, 5, 6),
            __builtin_shufflevector(kAcross == 8 ? none : x.low, x.high, 7, 8, 9, 10, 11, 12, 13, 14)};
  else
    return {__builtin_shufflevector(x.low, kAcross == 8 ? none : x.high, 1, 2, 3, 4, 5, 6, 7, 8),
            __builtin_shufflevector(x.high, none, 1, 2, 3, 4, 5, 6, 7, 8)};
}
// The same within a row of several vectors, of which the neighbouring ones begin, or end, with `beyond`.
template <int kStep>
static inline wide neighbours(wide x, float beyond) {
  const half other = half{} + beyond;
  if constexpr (kStep < 0)
    return {__builtin_shufflevector(x.low, other, 8, 0, 1, 2, 3, 4, 5, 6),
            __builtin_shufflevector(x.low, x.high, 7, 8, 9, 10, 11, 12, 13, 14)};
  else
    return {__builtin_shufflevector(x.low, x.high, 1, 2, 3, 4, 5, 6, 7, 8),
            __builtin_shufflevector(x.high, other, 1, 2, 3, 4, 5, 6, 7, 8)};
}
#endif

static inline float wide_sum(const float* p) {
  vec total = load(p);
  for (int i = kLanes; i < kPatches; i += kLanes) total += load(p + i);
  return sum(total);
}

// 32 pixels, every second row of a map `32 / Rows` wide: where its rows are, in one channel; channels follow. Or of one
// row of a wider map.
template <int Rows>
struct WholeRows {
  static constexpr int kRows = Rows;
  float* row[Rows];
  int64_t step[Rows];

  // From row `first` and column `begin` on; rows outside of the map are zero.
  WholeRows(const WinogradGroup& g, float* map, int64_t tile_stride, int first, int begin) {
    static float zeros[kTile] = {};
    for (int k = 0; k < Rows; ++k) {
      const int y = first + 2 * k, pixel = y * g.width + begin;
      const bool inside = y >= 0 && y < g.height;
      row[k] = inside ? map + pixel / kTile * tile_stride + pixel % kTile : zeros;
      step[k] = inside ? kTile : 0;
    }
  }
  void load(wide& low, wide& high) const {
    if constexpr (Rows == 4) {
      low = join(load_half(row[0]), load_half(row[1]));
      high = join(load_half(row[2]), load_half(row[3]));
    } else {
      low = load_wide(row[0]);
      high = load_wide(Rows == 2 ? row[Rows - 1] : row[0] + 16);
    }
  }
  void store(wide low, wide high) const {
    if constexpr (Rows == 4) {
      store_half(row[0], low_half(low));
      store_half(row[1], high_half(low));
      store_half(row[2], low_half(high));
      store_half(row[3], high_half(high));
    } else {
      store_wide(row[0], low);
      store_wide(Rows == 2 ? row[Rows - 1] : row[0] + 16, high);
    }
  }
  wide kept(wide low, wide high) const { return low + high; }
  void next_channel() {
#pragma GCC unroll 4
    for (int k = 0; k < Rows; ++k) row[k] += step[k];
  }
};

// As WholeRows, for a map whose rows lie across tiles; the lanes of a vector that a row leaves empty are zero.
template <int Rows>
struct RaggedRows {
  static constexpr int kRows = Rows, kPieces = Rows == 4 ? 4 : 2;
  struct Piece {
    float* at;  // of the vector's first lane
    uint32_t lanes;
  };
  Piece piece[2][kPieces];
  uint32_t lanes[2];

  RaggedRows(const WinogradGroup& g, float* map, int64_t tile_stride, int first, int column) {
    for (int half = 0; half < 2; ++half) {
      lanes[half] = 0;
      for (int i = 0; i < kPieces; i += 2) {
        const int slot = Rows == 1 ? 0 : half * Rows / 2 + i / 2, begin = column + (Rows == 1 ? half * kPatches : 0);
        const int y = first + 2 * slot, lane = i / 2 * (kPatches / 2);
        const bool inside = y >= 0 && y < g.height && begin < g.width;
        const int pixel = inside ? y * g.width + begin : 0, in_tile = pixel % kTile;
        const int rest = g.width - begin < kPatches ? g.width - begin : kPatches, count = inside ? rest : 0;
        const int here = count < kTile - in_tile ? count : kTile - in_tile;
        float* tile = map + pixel / kTile * tile_stride;
        piece[half][i] = {tile + in_tile - lane, ((1u << here) - 1) << lane};
        piece[half][i + 1] = {tile + tile_stride - here - lane, ((1u << count) - (1u << here)) << lane};
        lanes[half] |= piece[half][i].lanes | piece[half][i + 1].lanes;
      }
    }
  }
#if DSN_VECTOR_BYTES == 64
  static wide keep(wide x, uint32_t lanes) { return (wide)_mm512_maskz_mov_ps((__mmask16)lanes, (__m512)x); }
  static wide load(const Piece (&from)[kPieces]) {
    __m512 x = _mm512_setzero_ps();
#pragma GCC unroll 4
    for (const Piece& p : from) x = _mm512_mask_loadu_ps(x, (__mmask16)p.lanes, p.at);
    return (wide)x;
  }
  static void store(const Piece (&to)[kPieces], wide x) {
#pragma GCC unroll 4
    for (const Piece& p : to) _mm512_mask_storeu_ps(p.at, (__mmask16)p.lanes, (__m512)x);
  }
#elif DSN_VECTOR_BYTES == 32
  static half keep(half x, uint32_t lanes) { return (half)avx2::keep((vec)x, make_mask(lanes)); }
  static wide keep(wide x, uint32_t lanes) { return {keep(x.low, lanes), keep(x.high, lanes >> 8)}; }
  static half load(const float* p, uint32_t lanes) { return (half)_mm256_maskload_ps(p, (__m256i)make_mask(lanes)); }
  static void store(float* p, half x, uint32_t lanes) {
    if ((lanes & 0xff) == 0xff)  // a masked store takes ten times as long
      store_half(p, x);
    else if (lanes & 0xff)
      _mm256_maskstore_ps(p, (__m256i)make_mask(lanes), (__m256)x);
  }
  // Of four rows, a piece lies in one half.
  static constexpr bool in_low(int piece) { return Rows != 4 || piece < 2; }
  static constexpr bool in_high(int piece) { return Rows != 4 || piece >= 2; }
  static wide load(const Piece (&from)[kPieces]) {
    wide x{};
#pragma GCC unroll 4
    for (int i = 0; i < kPieces; ++i) {
      if (in_low(i)) x.low += load(from[i].at, from[i].lanes);
      if (in_high(i)) x.high += load(from[i].at + 8, from[i].lanes >> 8);
    }
    return x;
  }
  static void store(const Piece (&to)[kPieces], wide x) {
#pragma GCC unroll 4
    for (int i = 0; i < kPieces; ++i) {
      if (in_low(i)) store(to[i].at, x.low, to[i].lanes);
      if (in_high(i)) store(to[i].at + 8, x.high, to[i].lanes >> 8);
    }
  }
#else
  static float& lane(wide& x, int i) { return reinterpret_cast<float*>(&x)[i]; }
  static wide keep(wide x, uint32_t lanes) {
    for (int i = 0; i < kPatches; ++i)
      if (!(lanes >> i & 1)) lane(x, i) = 0;
    return x;
  }
  static wide load(const Piece (&from)[kPieces]) {
    wide x{};
    for (const Piece& p : from)
      for (int i = 0; i < kPatches; ++i)
        if (p.lanes >> i & 1) lane(x, i) = p.at[i];
    return x;
  }
  static void store(const Piece (&to)[kPieces], wide x) {
    for (const Piece& p : to)
      for (int i = 0; i < kPatches; ++i)
        if (p.lanes >> i & 1) p.at[i] = lane(x, i);
  }
#endif
  void load(wide& low, wide& high) const {
    low = load(piece[0]);
    high = load(piece[1]);
  }
  void store(wide low, wide high) const {
    store(piece[0], low);
    store(piece[1], high);
  }
  wide kept(wide low, wide high) const { return keep(low, lanes[0]) + keep(high, lanes[1]); }
  void next_channel() {
    for (auto& half : piece)
#pragma GCC unroll 4
      for (Piece& p : half) p.at += kTile;
  }
};

// A piece of a row, and the pixels to the left and right of it.
template <class PixelRows>
struct PieceOf : PixelRows {
  static constexpr int kSides = 2;
  const float* beside[kSides];
  int64_t side_step[kSides];

  PieceOf(const WinogradGroup& g, float* map, int64_t tile_stride, int first, int begin)
      : PixelRows(g, map, tile_stride, first, begin) {
    static const float zero = 0;
    for (int side = 0; side < kSides; ++side) {
      const int x = side ? begin + 2 * kPatches : begin - 1, pixel = first * g.width + x;
      const bool inside = first >= 0 && first < g.height && x >= 0 && x < g.width;
      beside[side] = inside ? map + pixel / kTile * tile_stride + pixel % kTile : &zero;
      side_step[side] = inside ? kTile : 0;
    }
  }
  void next_channel() {
    PixelRows::next_channel();
    for (int side = 0; side < kSides; ++side) beside[side] += side_step[side];
  }
};
template <class PixelRows>
constexpr bool kIsPiece = false;
template <class PixelRows>
constexpr bool kIsPiece<PieceOf<PixelRows>> = true;

// The first row of outputs and the first column of 16 patches from number `first` on.
template <int kAcross>
static inline void place_patches(const WinogradGroup& g, int first, int& row, int& column) {
  const int at = first / kAcross, pieces = kAcross == kPatches ? (g.width + 2 * kPatches - 1) / (2 * kPatches) : 1;
  row = at / pieces * 2;
  column = at % pieces * 2 * kPatches;
}

// transformed[column][channel][lane] = the `position_row`-th row of B^T d B.
template <class PixelRows>
static void winograd_input(const WinogradGroup& g, int position_row) {
  constexpr int kAcross = kPatches / PixelRows::kRows;  // patches of a row
  constexpr struct {
    int minuend, other;
  } kPair[4] = {{0, 2}, {1, 2}, {2, 1}, {1, 3}};
  for (int v = 0; v < g.patches; v += kPatches) {
    int top, begin;
    place_patches<kAcross>(g, g.first + v, top, begin);
    float* map = const_cast<float*>(g.src);  // NOLINT: only loads go through it
    PixelRows a(g, map, g.src_tile_stride, top - 1 + kPair[position_row].minuend, begin);
    PixelRows b(g, map, g.src_tile_stride, top - 1 + kPair[position_row].other, begin);
    float* to = g.transformed + v;
    for (int c = 0; c < g.in_channels; ++c, to += g.patches, a.next_channel(), b.next_channel()) {
      wide low, high, low_b, high_b;
      a.load(low, high);
      b.load(low_b, high_b);
      low = position_row == 1 ? low + low_b : low - low_b;
      high = position_row == 1 ? high + high_b : high - high_b;
      const wide even = evens(low, high), odd = odds(low, high);
      wide before, after;
      if constexpr (kIsPiece<PixelRows>) {
        const float sign = position_row == 1 ? 1 : -1;
        before = neighbours<-1>(odd, *a.beside[0] + sign * *b.beside[0]);
        after = neighbours<1>(even, *a.beside[1] + sign * *b.beside[1]);
      } else {
        before = neighbours<kAcross, -1>(odd);
        after = neighbours<kAcross, 1>(even);
      }
      store_wide(to, before - odd);
      store_wide(to + g.position_stride, even + odd);
      store_wide(to + 2 * g.position_stride, odd - even);
      store_wide(to + 3 * g.position_stride, even - after);
    }
  }
}

// Adds a row of positions of one block of output channels to A^T m A; the rows of outputs that it completes leave.
template <class PixelRows>
static void winograd_output(const WinogradGroup& g, int position_row, int first_channel, const float* products,
                            int64_t position_stride) {
  const int channels = g.out_channels - first_channel < kWinogradRows ? g.out_channels - first_channel : kWinogradRows;
  for (int v = 0; v < g.patches; v += kPatches) {
    int top, begin;
    place_patches<kPatches / PixelRows::kRows>(g, g.first + v, top, begin);
    float* map = g.dst + first_channel * kTile;
    PixelRows upper(g, map, g.dst_tile_stride, top, begin), lower(g, map, g.dst_tile_stride, top + 1, begin);
    // Of a channel's lanes: even and odd pixels of the upper row, then of the lower one.
    float* sums = g.partial + (first_channel * g.patches + v) * 4;
    auto finish = [&](const PixelRows& to, wide even, wide odd) {
      wide low = zip_low(even, odd), high = zip_high(even, odd);
      if (g.accumulate) {
        wide low_before, high_before;
        to.load(low_before, high_before);
        low = low + low_before;
        high = high + high_before;
      }
      if (g.relu) {
        low = positive(low);
        high = positive(high);
      }
      to.store(low, high);
      return to.kept(low, high);
    };
    for (int m = 0; m < channels; ++m, sums += 4 * g.patches, upper.next_channel(), lower.next_channel()) {
      const float* p = products + m * g.patches + v;
      const wide p0 = load_wide(p), p1 = load_wide(p + position_stride), p2 = load_wide(p + 2 * position_stride);
      const wide even = p0 + (p1 + p2), odd = (p1 - p2) - load_wide(p + 3 * position_stride);
      float *upper_even = sums, *upper_odd = sums + 16, *lower_even = sums + 32, *lower_odd = sums + 48;
      if (position_row == 0) {
        store_wide(upper_even, even);
        store_wide(upper_odd, odd);
      } else if (position_row == 1) {
        store_wide(upper_even, load_wide(upper_even) + even);
        store_wide(upper_odd, load_wide(upper_odd) + odd);
        store_wide(lower_even, even);
        store_wide(lower_odd, odd);
      } else if (position_row == 2) {
        const wide total = finish(upper, load_wide(upper_even) + even, load_wide(upper_odd) + odd);
        if (g.sums) store_wide(upper_even, total);
        store_wide(lower_even, load_wide(lower_even) - even);
        store_wide(lower_odd, load_wide(lower_odd) - odd);
      } else {
        wide total = finish(lower, load_wide(lower_even) - even, load_wide(lower_odd) - odd);
        if (g.sums) {
          total = total + load_wide(upper_even);
          store_wide(upper_even, total);
          g.sums[first_channel + m] += wide_sum(upper_even);
        }
      }
    }
  }
}

// Products of one block of output channels at a row of positions, [column][channel][lane]; `Rows` of them at a time.
template <int Rows, int Vectors>
static void winograd_products(const WinogradGroup& g, const float* weight, const float* bias, float* products,
                              int64_t products_stride) {
  for (int column = 0; column < 4; ++column, weight += int64_t{g.in_channels} * kWinogradRows)
    for (int lane = 0; lane < g.patches; lane += Vectors * kLanes)
      for (int first = 0; first < kWinogradRows; first += Rows) {
        vec acc[Rows][Vectors];
#pragma GCC unroll 16
        for (int m = 0; m < Rows; ++m) {
          // Position (1, 1) is in every output.
          const vec init = bias && column == 1 ? broadcast(bias[first + m]) : vec{};
#pragma GCC unroll 4
          for (int v = 0; v < Vectors; ++v) acc[m][v] = init;
        }
        const float* src = g.transformed + column * g.position_stride + lane;
        const float* w = weight + first;
#pragma GCC unroll 2
        for (int c = 0; c < g.in_channels; ++c, src += g.patches, w += kWinogradRows) {
          __builtin_prefetch(w + g.in_channels * kWinogradRows);  // the next column's, which may be far away
          vec x[Vectors];
#pragma GCC unroll 4
          for (int v = 0; v < Vectors; ++v) x[v] = load(src + v * kLanes);
          fma_block<Rows, Vectors>(acc, x, w);
        }
#pragma GCC unroll 16
        for (int m = 0; m < Rows; ++m)
#pragma GCC unroll 4
          for (int v = 0; v < Vectors; ++v)
            store(products + column * products_stride + (first + m) * g.patches + lane + v * kLanes, acc[m][v]);
      }
}

// `Inputs` are the rows that are read, PixelRows or pieces of them.
template <class PixelRows, class Inputs = PixelRows>
static void winograd_group(const WinogradGroup& g) {
  constexpr int kRows = DSN_VECTOR_BYTES == 64 ? kWinogradRows : kWinogradRows / 2;  // that the registers hold
  // Columns begin a cache line further on, or all four would fall into the same sets.
  const int64_t products_stride = kWinogradRows * g.patches + kAlign;
  alignas(64) float products[4 * (kWinogradRows * kWinogradPatches + kAlign)];
  if (g.sums)
    for (int m = 0; m < g.out_channels; ++m) g.sums[m] = 0;
  for (int row = 0; row < 4; ++row) {
    winograd_input<Inputs>(g, row);
    const float* weight = g.weight + row * g.weight_stride;
    for (int first = 0; first < g.out_channels; first += kWinogradRows) {
      const float* bias = row == 1 && g.bias ? g.bias + first : nullptr;
      if (g.patches % (2 * kLanes) == 0)
        winograd_products<kRows, 2>(g, weight, bias, products, products_stride);
      else
        winograd_products<kWinogradRows, 1>(g, weight, bias, products, products_stride);
      winograd_output<PixelRows>(g, row, first, products, products_stride);
      weight += int64_t{4} * g.in_channels * kWinogradRows;
    }
  }
}

template <int Rows>
static void winograd_rows(const WinogradGroup& g) {
  const bool whole = g.width == 32 / Rows && g.height * g.width % (4 * kPatches) == 0;
  return whole ? winograd_group<WholeRows<Rows>>(g) : winograd_group<RaggedRows<Rows>>(g);
}

static void winograd3x3(const WinogradGroup& g) {
  if (g.width > 32) {
    const bool whole = g.width % 32 == 0 && g.height % 2 == 0;
    return whole ? winograd_group<WholeRows<1>, PieceOf<WholeRows<1>>>(g)
                 : winograd_group<RaggedRows<1>, PieceOf<RaggedRows<1>>>(g);
  }
  switch (winograd_row(g.width)) {
    case 32:
      return winograd_rows<1>(g);
    case 16:
      return winograd_rows<2>(g);
    default:
      return winograd_rows<4>(g);
  }
}
