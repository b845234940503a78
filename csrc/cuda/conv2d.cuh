// conv2d: a 1x1 or 3x3 convolution of a map into another, stride 1 or 2, with what stands around it in residual
// networks: BN-ReLU before, bias, sum with the destination and ReLU after; for the samples whose gate opened, of the
// filters and input channels that a sample's masks chose. An implicit product: a block of threads does one tile of one
// sample and some of the columns; input and weights pass through shared memory, p.depth groups at a time, the next pass
// landing while this one is multiplied. Blocks walk the tiles of the samples that run, however many those are.
#pragma once

#include "cuda/tile.cuh"
#include "cuda/unit_gate.cuh"

namespace dsn::cuda {

constexpr int kConvRows = 2;  // of 16 pixels that a warp multiplies

// What a block works on.
struct ConvWork {
  int sample, first_column, columns;  // columns: of this block
  MapTile tile;
  int inputs, filters;                 // that are chosen
  const uint16_t *in_list, *out_list;  // in shared memory, the block's columns of the latter; null: all
  __device__ bool gathers() const { return in_list || out_list; }
};

// The part of the source that a tile reads, as cells in shared memory: of a 1x1 its pixels, of a 3x3 all between too.
struct ConvWindow {
  int top, left, rows, columns, step;
  __device__ ConvWindow(const Conv2dParams& p, const MapTile& tile) {
    const int reach = p.taps == 9 ? 1 : 0;
    step = reach ? 1 : p.stride;
    top = tile.y * p.stride - reach;
    left = tile.x * p.stride - reach;
    rows = reach ? (tile.rows - 1) * p.stride + 3 : tile.rows;
    columns = reach ? (tile.columns - 1) * p.stride + 3 : tile.columns;
  }
  __device__ int cells() const { return rows * columns; }
};

// Starts to copy groups [first, first + count) of the source into shared memory, zeros outside the map and beyond the
// channels that there are.
template <class T>
__device__ inline void stage_cells(const Conv2dParams& p, const ConvWork& work, int first, int count, T* cells) {
  const ConvWindow window(p, work.tile);
  const T* state = static_cast<const T*>(p.source.data) + work.sample * p.source.sample_stride;
  const auto* norm = static_cast<const typename Numeric<T>::Norm*>(p.norm);
  const int live = work.in_list ? (work.inputs + kGroup - 1) / kGroup : p.live_groups;
  const int wide = p.wide_groups ? 2 : 1, pieces = count / wide;
  for (int i = threadIdx.x; i < window.cells() * pieces; i += blockDim.x) {
    const int cell = i / pieces, group = first + i % pieces * wide;
    const int y = window.top + cell / window.columns * window.step;
    const int x = window.left + cell % window.columns * window.step;
    T* to = cells + cell * p.cell_stride + (group - first) * kGroup;
    if (group >= live || y < 0 || y >= p.source.height || x < 0 || x >= p.source.width) {
      for (int g = 0; g < wide; ++g) store_quad<T>(to, g * kGroup, {});
      continue;
    }
    const T* from =
        state + static_cast<int64_t>(y * p.source.width + x) * p.source.channels + (p.first_group + group) * kGroup;
    constexpr int kBytes = kGroup * sizeof(T);
    if (norm) {
      store_quad<T>(to, 0, Numeric<T>::normalise(load_quad<T>(from, 0), norm[group]));
    } else if (wide == 2 && group + 1 < live) {
      ptx::cp_async<16>(ptx::shared_address(to), from);
    } else {
      ptx::cp_async<kBytes>(ptx::shared_address(to), from);
      if (wide == 2) store_quad<T>(to, kGroup, {});
    }
  }
}

// The same of the weights: of all filters as they lie, of chosen ones gathered, a group's row kConvPadding further than
// it is long.
template <class T>
__device__ inline void stage_weights(const Conv2dParams& p, const ConvWork& work, int first, int count, T* staged) {
  const int pitch = p.block_columns * kGroup + kConvPadding, columns = work.columns;
  if (!work.gathers()) {
    constexpr int kPiece = 16 / sizeof(T);
    const int pieces = columns * kGroup / kPiece;
    const T* weight = static_cast<const T*>(p.weight) + work.first_column * kGroup;
    for (int i = threadIdx.x; i < p.taps * count * pieces; i += blockDim.x) {
      const int piece = i % pieces * kPiece, group = i / pieces % count, tap = i / pieces / count;
      const T* from = weight + static_cast<int64_t>(tap * p.in_groups + first + group) * p.columns * kGroup + piece;
      ptx::cp_async<16>(ptx::shared_address(staged + (tap * p.depth + group) * pitch + piece), from);
    }
    return;
  }
  const T* weight = static_cast<const T*>(p.selectable);
  for (int i = threadIdx.x; i < p.taps * count * columns; i += blockDim.x) {
    const int n = i % columns, group = i / columns % count, tap = i / columns / count;
    const bool chosen = work.first_column + n < work.filters;
    const int filter = work.out_list ? work.out_list[n] : work.first_column + n;
    T v[kGroup];
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const int k = (first + group) * kGroup + j;
      v[j] = Numeric<T>::from(0.f);
      if (chosen && k < work.inputs) {
        const int channel = work.in_list ? work.in_list[k] : k;
        v[j] = weight[static_cast<int64_t>(tap * p.in_channels + channel) * p.columns + filter];
      }
    }
    Quad<T> quad;
    memcpy(&quad, v, sizeof(quad));
    store_quad<T>(staged, (tap * p.depth + group) * pitch + n * kGroup, quad);
  }
}

// Sums of products for a warp's pixels and columns. `keeps_weights`: shared memory holds them from the tile before.
template <class T, int kNt>
__device__ inline void convolve(const Conv2dParams& p, const ConvWork& work, int first_row, int column, int tiles,
                                bool keeps_weights, Accumulator<kConvRows, kNt>& d) {
  clear<kConvRows, kNt>(d);
  T* cells = shared_memory<T>(p.at_cells);
  T* staged = shared_memory<T>(p.at_weights);
  const int second = p.stage_bytes / static_cast<int>(sizeof(T));
  const ConvWindow window(p, work.tile);
  SharedOperands<T, kConvRows> operands{cells, {staged, p.depth, p.block_columns * kGroup + kConvPadding}, column};
  const int hop = p.taps == 9 ? p.stride : 1;
#pragma unroll
  for (int mt = 0; mt < kConvRows; ++mt)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = min(first_row + row_of(mt, r), work.tile.pixels() - 1);
      operands.offset[mt][r] =
          (row / work.tile.columns * hop * window.columns + row % work.tile.columns * hop) * p.cell_stride;
    }
  const int groups = work.in_list ? (work.inputs + 15) / 16 * 4 : p.in_groups;
  auto stage = [&](int first) {
    const int count = min(p.depth, groups - first), at = first / p.depth % 2 * second;
    stage_cells<T>(p, work, first, count, cells + at);
    if (!keeps_weights) stage_weights<T>(p, work, first, count, staged + at);
  };
  for (int first = -p.depth; first < groups; first += p.depth) {
    if (first + p.depth < groups) stage(first + p.depth);
    ptx::cp_async_commit();
    if (first < 0) continue;
    const int count = min(p.depth, groups - first), at = first / p.depth % 2 * second;
    ptx::cp_async_wait<1>();
    __syncthreads();
    operands.cells = cells + at;
    operands.weights.base = staged + at;
    auto multiply_pass = [&](Accumulator<kConvRows, kNt>& sums) {
#pragma unroll 1
      for (operands.tap = 0; operands.tap < p.taps; ++operands.tap) {
        operands.tap_offset = p.taps == 9 ? (operands.tap / 3 * window.columns + operands.tap % 3) * p.cell_stride : 0;
#pragma unroll 1
        for (operands.step = 0; operands.step < count / 4; ++operands.step)
          multiply<T, false, kConvRows, kNt>(sums, operands, tiles);
      }
    };
    if (tiles > 0 && first_row < work.tile.pixels()) {
      if constexpr (sizeof(T) == 4) {  // long sums in parts, for float32's rounding would show
        Accumulator<kConvRows, kNt> part;
        clear<kConvRows, kNt>(part);
        multiply_pass(part);
        add<kConvRows, kNt>(d, part);
      } else {
        multiply_pass(d);
      }
    }
    __syncthreads();
  }
}

// Filters that are off: what they add to changes only by the ReLU, what they would store is zero.
template <class T>
__device__ inline void finish_off_filters(const Conv2dParams& p, const ConvWork& work) {
  const uint8_t* mask = p.mask + static_cast<int64_t>(work.sample) * p.mask_stride;
  T* out = static_cast<T*>(p.out.data) + work.sample * p.out.sample_stride + p.out_offset;
  for (int i = threadIdx.x; i < work.tile.pixels() * p.out_channels; i += blockDim.x) {
    const int c = i % p.out_channels, row = i / p.out_channels;
    if (mask[c]) continue;
    const int pixel = (work.tile.y + row / work.tile.columns) * p.out.width + work.tile.x + row % work.tile.columns;
    T& value = out[static_cast<int64_t>(pixel) * p.out.channels + c];
    value = p.accumulate ? Numeric<T>::from(relu(static_cast<float>(value))) : Numeric<T>::from(0.f);
  }
}

// Bias, sum with the destination and ReLU of a warp's sums, stored where they belong.
template <class T, int kNt>
__device__ inline void write_conv(const Conv2dParams& p, const ConvWork& work, int first_row, int column, int tiles,
                                  const Accumulator<kConvRows, kNt>& d, ColumnSums<kNt>& total) {
  T* out = static_cast<T*>(p.out.data) + work.sample * p.out.sample_stride + p.out_offset;
  const bool scatters = work.out_list && !p.packed;
  const int limit = !work.out_list ? p.limit : p.packed ? (work.filters + kGroup - 1) / kGroup * kGroup : work.filters;
  const bool in_pairs = work.out_list ? p.packed : p.in_pairs;
  for_rows<kConvRows>(first_row / 16, work.tile.pixels(), [&](int mt, int r, int row) {
    const int pixel = (work.tile.y + row / work.tile.columns) * p.out.width + work.tile.x + row % work.tile.columns;
    T* to = out + static_cast<int64_t>(pixel) * p.out.channels;
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt) {
      if (nt >= tiles) continue;
      const int local = column + column_of(nt), n = work.first_column + local;
      float v[2] = {d[mt][nt][2 * r], d[mt][nt][2 * r + 1]};
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (work.out_list) {
          if (n + i < work.filters) v[i] += p.bias[work.out_list[local + i]];
        } else {
          v[i] += p.bias[n + i];
        }
      }
      if (in_pairs) {
        if (n >= limit) continue;
        const float2 old = p.accumulate ? load_pair<T>(to, n) : float2{0, 0};
        v[0] += old.x, v[1] += old.y;
        if (n < p.relu_below) v[0] = relu(v[0]);
        if (n + 1 < p.relu_below) v[1] = relu(v[1]);
        store_pair<T>(to, n, v[0], v[1]);
      } else {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (n + i >= limit) {
            v[i] = 0;
            continue;
          }
          T& value = to[scatters ? work.out_list[local + i] : n + i];
          if (p.accumulate) v[i] += static_cast<float>(value);
          if (n + i < p.relu_below) v[i] = relu(v[i]);
          value = Numeric<T>::from(v[i]);
        }
      }
      total.sum[nt][0] += v[0];
      total.sum[nt][1] += v[1];
    }
  });
}

template <class T, int kNt>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 2 : 1)
    conv2d_kernel(const __grid_constant__ Conv2dParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int warp = threadIdx.x / 32, across = p.pooling.blocks / p.pooling.tiles;
  uint16_t* lists = shared_memory<uint16_t>(p.at_lists);
  float* sums = shared_memory<float>(p.at_sums);
  int staged_column = -1;
  for (int item = blockIdx.x; item < p.items; item += gridDim.x) {
    const int sample = pick_sample(p.samples, item / p.pooling.blocks);
    if (sample < 0) return;
    const int tile = item % p.pooling.blocks / across, first_column = item % across * p.block_columns;
    ConvWork work{sample,
                  first_column,
                  p.columns - first_column,
                  MapTile(tile, p.tile_rows, p.tile_columns, p.tiles_across, p.out.width, p.out.height),
                  p.in_channels,
                  p.out_channels,
                  nullptr,
                  nullptr};
    if (p.filters.list) work.filters = p.filters.count[static_cast<int64_t>(sample) * p.filters.count_stride];
    if (p.inputs.list) work.inputs = p.inputs.count[static_cast<int64_t>(sample) * p.inputs.count_stride];
    if (p.filters.list && work.filters < p.out_channels) work.out_list = lists + p.in_groups * kGroup;
    if (p.inputs.list && work.inputs < p.in_channels) work.in_list = lists;
    if (work.out_list) work.columns = (work.filters + 7) / 8 * 8 - first_column;
    if (p.mask && work.out_list && first_column == 0) finish_off_filters<T>(p, work);
    work.columns = min(work.columns, p.block_columns);
    if (work.columns <= 0) continue;
    if (work.gathers()) {
      __syncthreads();  // the tile before may still read its lists
      if (work.in_list) {
        const uint16_t* list = p.inputs.list + static_cast<int64_t>(sample) * p.inputs.list_stride;
        for (int i = threadIdx.x; i < work.inputs; i += blockDim.x) lists[i] = list[i];
      }
      if (work.out_list) {
        const uint16_t* list = p.filters.list + static_cast<int64_t>(sample) * p.filters.list_stride + first_column;
        for (int i = threadIdx.x; i < min(work.columns, work.filters - first_column); i += blockDim.x)
          lists[p.in_groups * kGroup + i] = list[i];
      }
      __syncthreads();
    }
    const int first_row = warp % p.warps_down * kConvRows * 16, column = warp / p.warps_down * kNt * 8;
    const int tiles = min(kNt, (work.columns - column) / 8);
    Accumulator<kConvRows, kNt> d;
    const bool keeps_weights = p.stage_bytes == 0 && !work.gathers() && staged_column == first_column;
    convolve<T, kNt>(p, work, first_row, column, tiles, keeps_weights, d);
    staged_column = work.gathers() ? -1 : first_column;
    ColumnSums<kNt> total;
    if (tiles > 0) write_conv<T, kNt>(p, work, first_row, column, tiles, d, total);
    if (p.pooling.pooled && tiles > 0) total.store(sums + warp % p.warps_down * p.block_columns + column, tiles);
    const int own = min(work.columns, work.filters - first_column);
    const float* pooled = pool_tile(
        p.pooling, sample, tile, sums, p.warps_down, p.block_columns, first_column, work.columns,
        static_cast<unsigned long long>(work.tile.pixels()) * p.taps * work.inputs * own, shared_memory<int>());
    if (pooled) decide_units(p.gates, pooled, sample, p.pooling.macs, sums);
  }
}

}  // namespace dsn::cuda
