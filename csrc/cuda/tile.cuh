// Tiles of a map, and products of what shared memory holds of one.
#pragma once

#include "cuda/product.cuh"

namespace dsn::cuda {

// Tile `index` of a map that is cut row by row.
struct MapTile {
  int y, x, rows, columns;
  __device__ MapTile(int index, int tile_rows, int tile_columns, int across, int width, int height) {
    y = index / across * tile_rows;
    x = index % across * tile_columns;
    rows = min(tile_rows, height - y);
    columns = min(tile_columns, width - x);
  }
  __device__ int pixels() const { return rows * columns; }
  __device__ int pitch() const { return columns + 2; }
  __device__ int cells() const { return (rows + 2) * pitch(); }  // of a 3x3's input: own pixels and a frame
};

// Shared memory [cell][stride] by dense weights: a 1x1, or one tap of a 3x3.
template <class T, int kMt>
struct SharedOperands {
  const T* cells;
  Weights<T> weights;
  int column;
  int tap, tap_offset;
  int step;
  int offset[kMt][2];

  __device__ int group(int slot) const { return step * 4 + slot; }
  __device__ Quad<T> a(int group, int mt, int r) const {
    return load_quad<T>(cells, offset[mt][r] + tap_offset + group * kGroup);
  }
  __device__ Quad<T> b(int group, int n) const { return weights.load(tap, group, column + n); }
};

// Calls visit(mt, r, row) for a lane's row slots that are one of `rows`.
template <int kMt, class Visit>
__device__ inline void for_rows(int first_tile, int rows, Visit visit) {
#pragma unroll
  for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = first_tile * 16 + row_of(mt, r);
      if (row < rows) visit(mt, r, row);
    }
}

// The 3x3 (kTaps 9) or 1x1 over cells in shared memory, of a tile's own pixels. For each channel tile and pixel calls
// visit(row, column, values of two channels) and sums what it returns into `sums` [warp][columns] unless that is null.
template <class T, int kMt, int kNt, bool kExact, int kTaps, int kSteps = 3, class Visit>
__device__ inline void convolve_tile(const MapTile& tile, const T* cells, int stride, Weights<T> weights, int columns,
                                     float* sums, Visit visit) {
  const int rows = tile.pixels(), tiles = columns / 8, warp = threadIdx.x / 32;
  SharedOperands<T, kMt> operands{cells, weights};
  for (int first = 0; first < tiles; first += kNt) {
    operands.column = first * 8;
    ColumnSums<kNt> total;
    for (int m = warp * kMt; m * 16 < rows; m += kWarps * kMt) {
#pragma unroll
      for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int row = min(m * 16 + row_of(mt, r), rows - 1);
          const int cell = kTaps == 9 ? row / tile.columns * tile.pitch() + row % tile.columns : row;
          operands.offset[mt][r] = cell * stride;
        }
      Accumulator<kMt, kNt> d;
      clear<kMt, kNt>(d);
#pragma unroll 1
      for (operands.tap = 0; operands.tap < kTaps; ++operands.tap) {
        operands.tap_offset = kTaps == 9 ? (operands.tap / 3 * tile.pitch() + operands.tap % 3) * stride : 0;
#pragma unroll kSteps
        for (operands.step = 0; operands.step < weights.groups / 4; ++operands.step)
          multiply<T, kExact, kMt, kNt>(d, operands, tiles - first);
      }
      for_rows<kMt>(m, rows, [&](int mt, int r, int row) {
#pragma unroll
        for (int nt = 0; nt < kNt; ++nt) {
          if (!kExact && nt >= tiles - first) continue;
          const float2 v = visit(row, first * 8 + column_of(nt), d[mt][nt][2 * r], d[mt][nt][2 * r + 1]);
          total.sum[nt][0] += v.x;
          total.sum[nt][1] += v.y;
        }
      });
    }
    if (sums) total.store(sums + warp * columns + first * 8, tiles - first);
  }
}

}  // namespace dsn::cuda
