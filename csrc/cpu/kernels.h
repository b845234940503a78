// The micro-kernels behind one table per instruction set; the table is chosen when the library ranges.
#pragma once

#include <cstdint>

#include "../common/layout.h"

namespace dsn::cpu {

// Each resized row or column lies between two of the source, `low` and `high`, `weight` of the way to the second.
struct Taps {
  const int *low, *high;
  const float* weight;
};

// Some tiles of a convolution with 1 or 9 taps, one after another; a block of weights is read once for all of them:
//   dst[m][p] = relu?(init + sum over live channels c, taps t of w[m][c][t] * src[c][p + shift(t)])
// src holds live channels only, one after another; weights lie where `weight_at` says. One loop over a list of them: a
// loop over ranges of live channels costs a mispredicted branch for each.
struct ConvTile {
  float* src;  // [live][src_stride], at the first tile's first pixel
  int64_t src_stride;
  int tiles = 1;
  bool cached;                            // the sum is taken in parts whose inputs the first cache holds
  int64_t src_tile, dst_tile, sums_tile;  // floats from one tile to the next
  const int* src_rows;                    // taps = 1: where in src each live channel is; null: one after another
  int64_t plane_stride;  // stride 2: from plane to plane of [even, odd rows][even, odd columns] of a channel
  // One tile of 1 tap: if set, src is first filled with relu(scale * state + shift); state is [channels][kTile].
  const float* state;
  const float *scale, *shift;
  // The weight of row m of block b and tap t is weight[b * block_stride + at + t * tap_stride + m], where `at` of the
  // i-th live channel is weight_at[i], or i * taps * tap_stride if that is null.
  const float* weight;
  int64_t block_stride, tap_stride;
  const int* weight_at;
  const int* live;  // ascending
  int live_count;
  // bfloat16: src, weight and live are of pairs of channels; those of live pair i are state_rows[2 i] and [2 i + 1].
  bool pairs;
  const int* state_rows;
  bool dst_pairs;  // dst is of pairs too: [pairs of out_channels][dst_stride]
  int out_channels;
  int row_block;
  int valid;             // pixels of the last tile that exist; the others are stored as zero
  int width;             // of the map; taps = 9 only
  const uint32_t* edge;  // [tiles][2] bit p set: pixel p has a left / right neighbour; taps = 9 only
  const float* bias;     // [out_channels, padded] or null
  bool accumulate;       // add to dst
  bool relu;
  bool relu6;         // of those that get the ReLU, at most 6
  int relu_channels;  // so many outputs get it, 0: all
  float* dst;         // [out_channels][dst_stride]
  int64_t dst_stride;
  const int* rows;  // the row of dst and sums that each output channel goes to; null: its own
  float* sums;      // [out_channels] sums over a tile's pixels, or null
};

// Some patches of 2x2 outputs of a 3x3 convolution, by Winograd's F(2x2, 3x3). A row has winograd_row(width) / 2 of
// them; what lies behind the map's edges is zero and not stored.
struct WinogradGroup {
  const float* src;  // the map, [tiles][src_tile_stride]
  int64_t src_tile_stride;
  int height, width;
  int first, patches;  // whole vectors of them, counted row by row
  int in_channels, out_channels;
  const float* weight;    // [4 rows of positions][weight_stride], in each [block of outputs][4][in][kWinogradRows]
  int64_t weight_stride;  // blocks of other outputs may lie between
  const float* bias;      // [out_channels, padded to whole blocks] or null
  bool accumulate, relu;
  float* dst;  // the map, [tiles][dst_tile_stride], at the first output channel
  int64_t dst_tile_stride;
  float* sums;         // [out_channels] over the group's pixels, or null
  float* transformed;  // scratch, [4][position_stride]: a row of positions of the transformed inputs
  int64_t position_stride;
  float* partial;  // scratch, [out_channels][4][patches]
};

// `count` pixels side by side, from a plane of one channel and of its output: where they begin in either.
struct PixelRange {
  int from, to, count;
};

// Channels of a map, spread so that a window slides over each: for all pixels of the ranges
//   dst[i * dst_stride + to + j] = src[channels[i] * src_stride + from + stride j]
// or relu(scale x + shift) of it unless scale is null, and `around` where channels[i] is negative. Up to a vector of
// `around` is written behind each range, in their order.
struct Spread {
  const float* src;
  int64_t src_stride;
  const int* channels;
  int count;
  const PixelRange* ranges;
  int range_count;
  int stride;
  const float *scale, *shift;
  float around;
  float* dst;
  int64_t dst_stride;
};

// One channel of a depthwise convolution:
//   dst[to + i] = activation(bias + sum over taps t of weight[t * weight_stride] * plane[from + offset[t] + i])
// for all pixels of the ranges; behind each of a range's pixels in the plane lies a vector more. Or of a pool: the
// maximum of plane[from + offset[t] + i], or their sum / divisor[from + i]. What lies in the same tile as a range's end
// may be overwritten before the next range is.
struct Slide {
  const float* plane;
  const int* offset;
  const float* weight;
  int64_t weight_stride;
  int taps;
  float bias;
  Activation activation;
  const float* divisor;  // null: a maximum
  const PixelRange* ranges;
  int range_count;
  float* dst;
};

// One channel of a depthwise convolution by a window of side x side, tile by tile:
//   dst[p] = activation(bias + sum over taps t of weight[t * weight_stride] * plane[offset[t] + p])
// where bit p of inside[column of t] is set or that is null; zeros behind the pixels that exist.
struct FlatWindow {
  const float* plane;
  const int* offset;
  int side;                   // 3 or 5
  const uint32_t* inside[5];  // [tiles]
  const float* weight;
  int64_t weight_stride;
  float bias;
  Activation activation;
  int tiles, valid;  // valid: pixels of the last tile
  float* dst;
  int64_t dst_tile;
};

// Pixels side by side, of which every second one goes to `first`, the others to `second`. `whole`: vectors may be
// written behind either's last.
struct Alternate {
  int from, count, first, second;
  bool whole;
};

// Channels of a map, its pixels taken apart, piece by piece: from src + channels[i] * kTile to dst + i * dst_stride;
// relu(scale x + shift) of them unless scale is null.
struct Unzip {
  const float* src;
  const int* channels;
  int count;
  const Alternate* pieces;
  int piece_count;
  const float *scale, *shift;
  float* dst;
  int64_t dst_stride;
};

// Some channels of a tile, zeros behind the pixels that exist:
//   dst[c][p] = activation([dst[c][p] +] factor[c] (scale[c] src[c][p] + shift[c]))
struct Blend {
  const float* src;            // [channels][kTile]
  const float *scale, *shift;  // null: 1 and 0
  const float* factor;         // null: 1
  const uint8_t* holds;        // 0: zeros stand for src[c]
  bool accumulate;
  Activation activation;
  int channels, count;
  float* dst;  // [channels][kTile]
};

struct Kernels {
  const char* name;
  void (*pointwise)(const ConvTile&);
  void (*conv3x3)(const ConvTile&);
  void (*conv3x3_stride2)(const ConvTile&);
  void (*winograd3x3)(const WinogradGroup&);
  // dst[live][kTile] = relu(scale * src[channel][kTile] + shift) for the live channels
  void (*normalise)(const float* src, const int* live, int live_count, const float* scale, const float* shift,
                    float* dst, int64_t dst_stride);
  // dst[live][begin .. end) = a map's pixels of the live channels, relu(scale * x + shift) unless scale is null
  void (*gather)(const float* src, int64_t tile_stride, const int* live, int live_count, int begin, int end,
                 const float* scale, const float* shift, float* dst, int64_t dst_stride);
  // dst[i] = src[offset[i]], zero where the offset is negative; relu(scale x + shift) of it unless scale is null
  void (*pick)(const float* src, const int* offset, int count, const float* scale, const float* shift, float* dst);
  // dst[(l * taps + t) * dst_stride + i] = weight[(live[l] * taps + t) * stride + the i-th kept one of `out`];
  // up to a vector more is written behind each row
  void (*select)(const float* weight, int64_t stride, const int* live, int live_count, int taps, const uint8_t* keep,
                 int out, float* dst, int64_t dst_stride);
  // sum over the map's pixels of relu(scale * src + shift); tiles are tile_stride floats apart
  float (*normalised_sum)(const float* src, int64_t tile_stride, int pixels, float scale, float shift);
  // `count` pixels of a 2x2 average pool of relu(scale * src + shift) over a map `width` wide. src is a channel of the
  // map in tiles `tile_stride` floats apart (kTile: a plane); `begin` is the first pixel of the first pair of rows.
  // scratch holds two such maps; whole vectors are written.
  void (*normalise_pool)(const float* src, int64_t tile_stride, int begin, int width, int count, float scale,
                         float shift, float* scratch, float* dst);
  // Rows [first, last) of a bilinear resize; wide holds the source's rows at the new width.
  void (*bilinear)(const float* src, int src_width, int dst_width, const Taps& columns, const Taps& rows, int first,
                   int last, float* wide, float* dst);
  // The first n floats of each row; rows are a stride apart
  void (*copy_rows)(const float* src, int64_t src_stride, float* dst, int64_t dst_stride, int rows, int n);
  void (*zero_rows)(float* dst, int64_t stride, int rows, int n);
  float (*dot)(const float* a, const float* b, int n);
  void (*spread)(const Spread&);
  void (*slide)(const Slide&);
  void (*pool)(const Slide&);
  // The first `count` of kTile pixels of each row become activation(x), zeros follow; sums[row] of them unless it is
  // null. Rows are kTile apart.
  void (*activate)(float* data, int rows, int count, Activation activation, float* sums);
  // sums[row] = the sum of src's row, each kTile long
  void (*row_sums)(const float* src, const int* rows, int count, float* sums);
  // A pointwise operation on the first `count` of kTile pixels of each row, which are kTile apart; zeros follow.
  void (*blend)(const Blend&);
  void (*flat_window)(const FlatWindow&);
  void (*unzip)(const Unzip&);
};

// The products of pairs of bfloat16, summed in float32.
struct Bfloat16Kernels {
  const char* name;
  void (*pointwise)(const ConvTile&);
  void (*conv3x3)(const ConvTile&);
  void (*conv3x3_stride2)(const ConvTile&);
  // rows[i] = pairs of rows[2 i] and rows[2 i + 1], each `stride` long
  void (*pack)(float* rows, int64_t stride, int pairs);
  // dst[live][kTile] = pairs of relu(scale * src[channel][kTile] + shift), the channels rows[2 l] and rows[2 l + 1]
  void (*normalise)(const float* src, const int* rows, int live_count, const float* scale, const float* shift,
                    float* dst, int64_t dst_stride);
  float (*dot)(float sum, uint32_t a, uint32_t b);  // sum + the products of two pairs
};

extern const Kernels kGeneric;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvx512;
extern const Bfloat16Kernels kBfloat16Twin, kBfloat16Native;
#endif

// The best table this machine can run; DSN_ISA=generic|avx2|avx512|avx512_bf16 lowers it, and any other value throws
// std::invalid_argument.
const Kernels& kernels();

// With the instruction vdpbf16ps where the CPU has it, with a twin of it on any other with AVX-512, else null.
const Bfloat16Kernels* bfloat16_kernels();

}  // namespace dsn::cpu
