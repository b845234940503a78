// conv2d: a convolution of a map into another, of any window and stride, with what may stand around it: BN-ReLU before
// (and means over 2x2 pixels), bias, sum with the destination and ReLU after; for the samples whose gate opened, of the
// filters that a sample's mask chose and the input channels that hold data. An implicit product: a block of threads
// does one tile of one sample and some of the columns; input and weights pass through shared memory, p.depth groups at
// a time, the next pass landing while this one is multiplied. Blocks walk the tiles of the samples that run, however
// many those are; where weights are gathered, tiles of samples with equal masks behind one another, and gather once.
#pragma once

#include "cuda/tile.cuh"
#include "cuda/unit_gate.cuh"

namespace dsn::cuda {

constexpr int kConvRows = 2;  // of 16 pixels that a warp multiplies

// How many channels of a mask are on before all are computed as they lie and those that are off dropped: that
// multiplies up to an eighth more and gathers nothing.
__device__ inline int nearly_all(int channels) { return channels - channels / 8; }

// What a block works on.
struct ConvWork {
  int sample, first_column, columns;  // columns: of this block
  MapTile tile;
  int inputs, filters;                 // that are chosen
  const uint16_t *in_list, *out_list;  // in shared memory, the block's columns of the latter; null: all are computed
  const uint8_t* mask;                 // of filters that are all computed, which of them are on; null: all
  const void* norm;                    // of the inputs as they are read
  const float* bias;                   // of the block's columns in shared memory, or null
  __device__ bool gathers() const { return in_list || out_list; }
};

// The part of the source that a tile reads, as cells in shared memory: of a 1x1 its pixels, of others all between too.
struct ConvWindow {
  int top, left, rows, columns, step;
  __device__ ConvWindow(const Conv2dParams& p, const MapTile& tile) {
    const bool single = p.taps == 1;
    step = single ? p.stride : 1;
    top = tile.y * p.stride - p.pad_rows;
    left = tile.x * p.stride - p.pad_columns;
    rows = single ? tile.rows : (tile.rows - 1) * p.stride + p.kernel_rows;
    columns = single ? tile.columns : (tile.columns - 1) * p.stride + p.kernel_columns;
  }
  __device__ int cells() const { return rows * columns; }
};

// Points to what stage_lists prepares.
template <class T>
__device__ inline void use_lists(const Conv2dParams& p, ConvWork& work) {
  if (!work.in_list || !p.norm) return;
  work.norm = shared_memory<T>(p.at_norm);
  if (p.constants) work.bias = shared_memory<float>(p.at_bias);
}

// Prepares what a block reads of chosen channels: their lists, and of inputs that are normalised scale and shift, side
// by side, and what the inputs without data add to the bias.
template <class T>
__device__ inline void stage_lists(const Conv2dParams& p, const ConvWork& work) {
  __syncthreads();  // the tile before may still read its own
  uint16_t* lists = shared_memory<uint16_t>(p.at_lists);
  if (work.in_list) {
    const uint16_t* list = p.inputs.list + static_cast<int64_t>(work.sample) * p.inputs.list_stride;
    for (int i = threadIdx.x; i < work.inputs; i += blockDim.x) lists[i] = list[i];
  }
  if (work.out_list) {
    const uint16_t* list =
        p.filters.list + static_cast<int64_t>(work.sample) * p.filters.list_stride + work.first_column;
    for (int i = threadIdx.x; i < min(work.columns, work.filters - work.first_column); i += blockDim.x)
      lists[p.in_groups * kGroup + i] = list[i];
  }
  __syncthreads();
  if (!work.in_list || !p.norm) return;
  const T* from = static_cast<const T*>(p.norm);  // [group][scale of 4, shift of 4]
  T* norm = shared_memory<T>(p.at_norm);
  for (int i = threadIdx.x; i < (work.inputs + kGroup - 1) / kGroup * kGroup; i += blockDim.x) {
    const int to = i / kGroup * 2 * kGroup + i % kGroup, channel = i < work.inputs ? work.in_list[i] : 0;
    const int at = channel / kGroup * 2 * kGroup + channel % kGroup;
    norm[to] = i < work.inputs ? from[at] : Numeric<T>::from(0.f);
    norm[to + kGroup] = i < work.inputs ? from[at + kGroup] : Numeric<T>::from(0.f);
  }
  if (p.constants) {
    // Threads side by side have a column each; behind one another they share the channels out.
    float* sums = shared_memory<float>(p.at_bias);
    const int parts = max(1, static_cast<int>(blockDim.x) / work.columns), part = threadIdx.x / work.columns;
    const int n = threadIdx.x % work.columns, each = (p.in_channels + parts - 1) / parts;
    const bool chosen = work.first_column + n < work.filters;
    const int filter = work.out_list && chosen ? work.out_list[n] : work.first_column + n;
    if (part < parts) {
      float total = 0;
      int channel = part * each, live = 0;
      const int last = min(channel + each, p.in_channels);
      for (int end = work.inputs; live < end;) {  // the first live input from `channel` on
        const int middle = (live + end) / 2;
        if (work.in_list[middle] < channel)
          live = middle + 1;
        else
          end = middle;
      }
      for (; chosen && channel < last; ++channel) {
        if (live < work.inputs && work.in_list[live] == channel)
          ++live;
        else
          total += p.constants[static_cast<int64_t>(channel) * p.columns + filter];
      }
      sums[part * work.columns + n] = total;
    }
    __syncthreads();
    if (part == 0) {
      float total = chosen ? p.bias[filter] : 0.f;
      for (int i = 0; i < parts; ++i) total += sums[i * work.columns + n];
      sums[n] = total;
    }
  }
  __syncthreads();
}

// Four channels of a source's pixel, as the product has them.
template <class T>
__device__ inline Quad<T> load_inputs(const Conv2dParams& p, const ConvWork& work, const T* pixel, int group) {
  if (!p.scattered || !work.in_list) return load_quad<T>(pixel, (p.first_group + group) * kGroup);
  T v[kGroup];
#pragma unroll
  for (int i = 0; i < kGroup; ++i) {
    const int k = group * kGroup + i;
    v[i] = k < work.inputs ? pixel[work.in_list[k]] : Numeric<T>::from(0.f);
  }
  Quad<T> quad;
  memcpy(&quad, v, sizeof(quad));
  return quad;
}

// Starts to copy groups [first, first + count) of the source into shared memory, zeros outside the map and beyond the
// channels that there are.
template <class T>
__device__ inline void stage_cells(const Conv2dParams& p, const ConvWork& work, int first, int count, T* cells) {
  const ConvWindow window(p, work.tile);
  const T* state = static_cast<const T*>(p.source.data) + work.sample * p.source.sample_stride;
  const auto* norm = static_cast<const typename Numeric<T>::Norm*>(work.norm);
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
    const T* pixel = state + static_cast<int64_t>(y * p.source.width + x) * p.source.channels;
    const T* from = pixel + (p.first_group + group) * kGroup;
    constexpr int kBytes = kGroup * sizeof(T);
    if (p.means) {
      float4 sum = {};
#pragma unroll 1
      for (int i = 0; i < 4; ++i) {
        const T* each = pixel + static_cast<int64_t>(i / 2 * p.source.width + i % 2) * p.source.channels;
        const float4 v = Numeric<T>::widen(Numeric<T>::normalise(load_inputs(p, work, each, group), norm[group]));
        sum = {sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
      }
      store_quad<T>(to, 0, Numeric<T>::narrow({0.25f * sum.x, 0.25f * sum.y, 0.25f * sum.z, 0.25f * sum.w}));
    } else if (norm) {
      store_quad<T>(to, 0, Numeric<T>::normalise(load_inputs(p, work, pixel, group), norm[group]));
    } else if (p.scattered && work.in_list) {
      store_quad<T>(to, 0, load_inputs(p, work, pixel, group));
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
    const bool chosen = work.first_column + n < (work.out_list ? work.filters : p.out_channels);
    const int filter = work.out_list ? work.out_list[n] : work.first_column + n;
    T v[kGroup];
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const int k = (first + group) * kGroup + j;
      v[j] = Numeric<T>::from(0.f);
      if (chosen && k < (work.in_list ? work.inputs : p.in_channels)) {
        const int channel = work.in_list ? work.in_list[k] : k;
        v[j] = weight[static_cast<int64_t>(tap * p.in_channels + channel) * p.columns + filter];
      }
    }
    Quad<T> quad;
    memcpy(&quad, v, sizeof(quad));
    store_quad<T>(staged, (tap * p.depth + group) * pitch + n * kGroup, quad);
  }
}

// Groups of the input that are multiplied, in whole k-steps.
__device__ inline int conv_groups(const Conv2dParams& p, const ConvWork& work) {
  return work.in_list ? (work.inputs + 15) / 16 * 4 : p.in_groups;
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
  const int hop = p.taps == 1 ? 1 : p.stride;
#pragma unroll
  for (int mt = 0; mt < kConvRows; ++mt)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = min(first_row + row_of(mt, r), work.tile.pixels() - 1);
      operands.offset[mt][r] =
          (row / work.tile.columns * hop * window.columns + row % work.tile.columns * hop) * p.cell_stride;
    }
  const int groups = conv_groups(p, work);
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
      operands.tap_offset = 0;
      int tap_column = 0;
#pragma unroll 1
      for (operands.tap = 0; operands.tap < p.taps; ++operands.tap) {
#pragma unroll 1
        for (operands.step = 0; operands.step < count / 4; ++operands.step)
          multiply<T, false, kConvRows, kNt>(sums, operands, tiles);
        operands.tap_offset += p.cell_stride;
        if (++tap_column < p.kernel_columns) continue;
        tap_column = 0;
        operands.tap_offset += (window.columns - p.kernel_columns) * p.cell_stride;
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

// Zeros behind the outputs, up to a whole group, where no column stands for them.
template <class T>
__device__ inline void pad_outputs(const Conv2dParams& p, const ConvWork& work) {
  T* out = static_cast<T*>(p.out.data) + work.sample * p.out.sample_stride + p.out_offset + p.out_channels;
  for (int i = threadIdx.x; i < work.tile.pixels() * p.padding; i += blockDim.x) {
    const int row = i / p.padding;
    const int pixel = (work.tile.y + row / work.tile.columns) * p.out.width + work.tile.x + row % work.tile.columns;
    out[static_cast<int64_t>(pixel) * p.out.channels + i % p.padding] = Numeric<T>::from(0.f);
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
        if (work.bias) {
          v[i] += work.bias[local + i];
        } else if (work.out_list) {
          if (n + i < work.filters) v[i] += p.bias[work.out_list[local + i]];
        } else {
          v[i] += p.bias[n + i];
        }
        if (work.mask && n + i < p.out_channels && !work.mask[n + i]) v[i] = 0;
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
  const int warp = threadIdx.x / 32, tiles_of_map = p.pooling.tiles, across = p.pooling.blocks / tiles_of_map;
  const int batch_tiles = p.items / across;
  uint16_t* lists = shared_memory<uint16_t>(p.at_lists);
  float* sums = shared_memory<float>(p.at_sums);
  constexpr int kNothing = -2, kAllWeights = -1;
  int staged_column = 0, staged_lists = kNothing, staged_weights = kNothing;  // of the sample that had them first
  const int end = p.walk ? min(p.items, static_cast<int>(blockIdx.x + 1) * p.walk) : p.items;
  for (int item = blockIdx.x * max(p.walk, 1); item < end; item += p.walk ? 1 : gridDim.x) {
    const int place = p.walk ? item % batch_tiles / tiles_of_map : item / p.pooling.blocks;
    int sample = p.order ? static_cast<int>(p.order[place]) : pick_sample(p.samples, place);
    if (p.order && p.samples.count && sample >= *p.samples.count) sample = -1;
    if (sample < 0 && p.walk) continue;
    if (sample < 0) return;
    const int tile = p.walk ? item % tiles_of_map : item % p.pooling.blocks / across;
    const int first_column = (p.walk ? item / batch_tiles : item % across) * p.block_columns;
    ConvWork work{sample,
                  first_column,
                  p.columns - first_column,
                  MapTile(tile, p.tile_rows, p.tile_columns, p.tiles_across, p.out.width, p.out.height),
                  p.in_channels,
                  p.out_channels,
                  nullptr,
                  nullptr,
                  nullptr,
                  p.norm,
                  nullptr};
    if (p.filters.list) work.filters = p.filters.count[static_cast<int64_t>(sample) * p.filters.count_stride];
    if (p.inputs.list) work.inputs = p.inputs.count[static_cast<int64_t>(sample) * p.inputs.count_stride];
    if (p.filters.list && work.filters < nearly_all(p.out_channels))
      work.out_list = lists + p.in_groups * kGroup;
    else if (work.filters < p.out_channels)
      work.mask = p.mask + static_cast<int64_t>(sample) * p.mask_stride;
    if (p.inputs.list && work.inputs < (p.scattered ? p.in_channels : nearly_all(p.in_channels))) work.in_list = lists;
    if (work.out_list) work.columns = (work.filters + 7) / 8 * 8 - first_column;
    if (p.off_look && work.out_list && first_column == 0) finish_off_filters<T>(p, work);
    if (p.padding && first_column == 0) pad_outputs<T>(p, work);
    work.columns = min(work.columns, p.block_columns);
    if (work.columns <= 0) continue;
    const int own_weights = !work.gathers() ? kAllWeights : p.alike ? p.alike[sample] : sample;
    if (staged_column != first_column) staged_column = first_column, staged_lists = staged_weights = kNothing;
    if (work.gathers()) {
      if (staged_lists != own_weights) stage_lists<T>(p, work);
      use_lists<T>(p, work);
      staged_lists = own_weights;
    }
    const int first_row = warp % p.warps_down * kConvRows * 16, column = warp / p.warps_down * kNt * 8;
    const int tiles = min(kNt, (work.columns - column) / 8);
    Accumulator<kConvRows, kNt> d;
    convolve<T, kNt>(p, work, first_row, column, tiles, staged_weights == own_weights, d);
    staged_weights = conv_groups(p, work) <= p.depth ? own_weights : kNothing;
    ColumnSums<kNt> total;
    if (tiles > 0) write_conv<T, kNt>(p, work, first_row, column, tiles, d, total);
    if (p.pooling.pooled && tiles > 0) total.store(sums + warp % p.warps_down * p.block_columns + column, tiles);
    const int own = max(0, min(work.columns, work.filters - first_column));
    const float* pooled = pool_tile(
        p.pooling, sample, tile, sums, p.warps_down, p.block_columns, first_column, work.columns,
        static_cast<unsigned long long>(work.tile.pixels()) * p.taps * work.inputs * own, shared_memory<int>());
    if (pooled) decide_units(p.gates, pooled, sample, p.pooling.macs, sums);
  }
}

}  // namespace dsn::cuda
