// What a convolution's block works on, and how input, weights, bias and lists come into its shared memory.
#pragma once

#include "cuda/routing.cuh"
#include "cuda/tile.cuh"

namespace dsn::cuda {

// How many channels of a mask are on before all are computed as they lie and those that are off dropped: that
// multiplies up to an eighth more and gathers nothing.
__device__ inline int nearly_all(int channels) { return channels - channels / 8; }

// A block's work: the same tile of one sample or, where p.pack allows more, of some that run.
struct ConvWork {
  int sample, samples;        // the first, how many
  int first_column, columns;  // columns: of this block
  MapTile tile;
  int inputs, filters;                 // that are chosen
  const uint16_t *in_list, *out_list;  // in shared memory, the block's columns of the latter; null: all are computed
  const uint8_t* mask;                 // of filters that are all computed, which of them are on; null: all
  const void* norm;                    // of the inputs as they are read
  const float* bias;                   // of the block's columns in shared memory, or null
  int first_group, end_group;          // of the input that this block multiplies, in whole k-steps
  int product;
  __device__ bool gathers() const { return in_list || out_list; }
  // Of the product: the first channel that is read, its group, and the groups that are; the first that is written.
  __device__ int source_channel(const Conv2dParams& p) const { return p.src_offset + product * p.in_channels; }
  __device__ int source_group(const Conv2dParams& p) const { return source_channel(p) / kGroup; }
  __device__ int source_groups(const Conv2dParams& p) const {
    return (source_channel(p) % kGroup + p.in_channels + kGroup - 1) / kGroup;
  }
  __device__ int out_channel(const Conv2dParams& p) const { return p.out_offset + product * p.out_channels; }
  __device__ int rows() const { return samples * tile.pixels(); }
  __device__ int sample_at(int i) const { return samples == 1 ? sample : shared_memory<int>()[1 + i]; }
  // The pixel of the destination that a row of the samples' tiles is, in elements.
  __device__ int64_t place(const Conv2dParams& p, int row) const {
    const int i = row / tile.pixels(), own = row % tile.pixels();
    const int pixel = (tile.y + own / tile.columns) * p.out.width + tile.x + own % tile.columns;
    return sample_at(i) * p.out.sample_stride + static_cast<int64_t>(pixel) * p.out.channels;
  }
};

// Finds the samples of a tile from place `first` of those that run on, -1 if there is none. All threads call it.
__device__ inline int pick_samples(const Conv2dParams& p, int first, int* count) {
  int* samples = shared_memory<int>() + 1;
  int found = 0;
  for (; found < p.pack; ++found) {
    const int sample = pick_sample(p.samples, first + found);
    if (sample < 0) break;
    if (threadIdx.x == 0) samples[found] = sample;
  }
  __syncthreads();
  *count = found;
  return found ? samples[0] : -1;
}

// The part of the source that a tile reads, as cells in shared memory. A 1x1 stages only the
// pixels that it reads, any other window those between them too.
struct ConvWindow {
  int top, left, rows, columns, step;
  __device__ ConvWindow(const Conv2dParams& p, const MapTile& tile) {
    const bool single = p.taps == 1;
    step = single ? p.stride : 1;
    top = tile.y * p.stride - p.pad_rows;
    left = tile.x * p.stride - p.pad_columns;
    rows = single ? tile.rows : (tile.rows - 1) * p.stride + (p.kernel_rows - 1) * p.dilation + 1;
    columns = single ? tile.columns : (tile.columns - 1) * p.stride + (p.kernel_columns - 1) * p.dilation + 1;
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

// Prepares what a block reads where channels are chosen: their lists and, if the input is normalised, scale and shift
// of its live channels side by side, and what the channels without data add to the bias.
template <class T>
__device__ inline void stage_lists(const Conv2dParams& p, const ConvWork& work) {
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

// Starts to copy the bias of columns that are all computed.
template <class T>
__device__ inline void stage_bias(const Conv2dParams& p, const ConvWork& work) {
  float* to = shared_memory<float>(p.at_bias);
  for (int i = threadIdx.x; i < work.columns; i += blockDim.x)
    ptx::cp_async<4>(ptx::shared_address(to + i), p.bias + work.product * p.columns + work.first_column + i);
}

// Starts to copy what the results of a tile are added to: [pixel][old_stride].
template <class T>
__device__ inline void stage_old(const Conv2dParams& p, const ConvWork& work) {
  constexpr int kPiece = 16 / sizeof(T);
  const T* out = static_cast<const T*>(p.out.data) + work.out_channel(p) + work.first_column;
  T* to = shared_memory<T>(p.at_old);
  const int pieces = min(work.columns, p.limit - work.first_column) / kPiece;
  for (int i = threadIdx.x; i < work.rows() * pieces; i += blockDim.x) {
    const int row = i / pieces, column = i % pieces * kPiece;
    ptx::cp_async<16>(ptx::shared_address(to + row * p.old_stride + column), out + work.place(p, row) + column);
  }
}

// Four channels of a source's pixel, as the product has them.
template <class T>
__device__ inline Quad<T> load_inputs(const Conv2dParams& p, const ConvWork& work, const T* pixel, int group) {
  if (!p.scattered || !work.in_list) return load_quad<T>(pixel, (work.source_group(p) + group) * kGroup);
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
  const T* source = static_cast<const T*>(p.source.data);
  const auto* norm = static_cast<const typename Numeric<T>::Norm*>(work.norm);
  const int live = work.in_list ? (work.inputs + kGroup - 1) / kGroup : work.source_groups(p);
  const int wide = p.wide_groups ? 2 : 1, pieces = count / wide, each = window.cells();
  for (int i = threadIdx.x; i < work.samples * each * pieces; i += blockDim.x) {
    const int cell = i / pieces, own = cell % each, group = first + i % pieces * wide;
    const int y = window.top + own / window.columns * window.step;
    const int x = window.left + own % window.columns * window.step;
    T* to = cells + cell * p.cell_stride + (group - first) * kGroup;
    if (group >= live || y < 0 || y >= p.source.height || x < 0 || x >= p.source.width) {
      for (int g = 0; g < wide; ++g) store_quad<T>(to, g * kGroup, {});
      continue;
    }
    const T* pixel = source + work.sample_at(cell / each) * p.source.sample_stride +
                     static_cast<int64_t>(y * p.source.width + x) * p.source.channels;
    const T* from = pixel + (work.source_group(p) + group) * kGroup;
    constexpr int kBytes = kGroup * sizeof(T);
    if (p.means) {
      float4 sum = {};
#pragma unroll 1
      for (int i = 0; i < 4; ++i) {
        const T* part = pixel + static_cast<int64_t>(i / 2 * p.source.width + i % 2) * p.source.channels;
        const float4 v = Numeric<T>::widen(Numeric<T>::normalise(load_inputs(p, work, part, group), norm[group]));
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

// Starts to copy the weights of groups [first, first + count): those of all filters as they lie, those of chosen
// filters one by one. A group's row takes kConvPadding elements more than it has, so that the rows begin in different
// banks.
template <class T>
__device__ inline void stage_weights(const Conv2dParams& p, const ConvWork& work, int first, int count, T* staged) {
  const int pitch = p.block_columns * kGroup + kConvPadding, columns = work.columns;
  if (!work.gathers()) {
    constexpr int kPiece = 16 / sizeof(T);
    const int pieces = columns * kGroup / kPiece;
    const T* weight = static_cast<const T*>(p.weight) + work.first_column * kGroup +
                      static_cast<int64_t>(work.product * p.taps) * p.in_groups * p.columns * kGroup;
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

}  // namespace dsn::cuda
