// subsample, max_pool, avg_pool, depthwise, pool_sums: what slides over a map channel by channel. A block does 64
// pixels of one sample; a thread keeps to its group of channels, so neighbours read neighbours and sums need no
// shuffle.
#pragma once

#include "cuda/unit_gate.cuh"

namespace dsn::cuda {

// Pixels of a window along one side, from `first` on, that lie in the map or in the zeros around it, as many behind it
// as before.
__device__ inline int padded_pixels(int size, int first, int window, int pad) {
  return min(first + window, size + pad) - first;
}

// Calls visit(tap, four channels of that pixel) for the pixels of a window that the map has, from channel `channel` on.
template <class T, class Visit>
__device__ inline void for_window(const ResampleParams& p, const T* source, int y, int x, int channel, Visit visit) {
  const Map& s = p.source;
  const int left = x * p.stride - p.pad_columns;
  int tap = 0, row = y * p.stride - p.pad_rows;
  for (int i = 0; i < p.window_rows; ++i, row += p.dilation) {
    int column = left;
    for (int j = 0; j < p.window_columns; ++j, ++tap, column += p.dilation) {
      if (row < 0 || row >= s.height || column < 0 || column >= s.width) continue;
      const T* pixel = source + static_cast<int64_t>(row * s.width + column) * s.channels;
      visit(tap, load_channels(pixel, channel, p.in_channels, p.src_offset));
    }
  }
}

// Each channel's products with a window of its own, bias and activation; zero in channels that there are not.
template <class T>
__device__ inline float4 weigh_window(const ResampleParams& p, const T* source, int y, int x, int group) {
  const int channel = group * kGroup - p.out_offset;
  float4 total = load_channels(p.bias, channel, p.in_channels, 0);
  for_window(p, source, y, x, channel, [&](int tap, float4 v) {
    const float4 w = load_channels(p.weight + tap * p.weight_row, channel, p.in_channels, 0);
    total = {fmaf(w.x, v.x, total.x), fmaf(w.y, v.y, total.y), fmaf(w.z, v.z, total.z), fmaf(w.w, v.w, total.w)};
  });
  auto finish = [&](float v, int c) { return c < p.in_channels ? activate(p.activation, v) : 0.f; };
  return {finish(total.x, channel), finish(total.y, channel + 1), finish(total.z, channel + 2),
          finish(total.w, channel + 3)};
}

// Maximum or mean over a window of pixels, those outside the map left out; zero where the mask is off.
template <class T>
__device__ inline float4 pool_window(const ResampleParams& p, int sample, const T* source, int y, int x, int group) {
  const bool average = p.op == Op::kAvgPool;
  const int channel = group * kGroup - p.out_offset;  // of the source, the group's first
  // The larger, or a NaN.
  auto merge = [&](float v, float w) { return average ? v + w : v < w || w != w ? w : v; };
  float4 total = {};
  int count = 0;
  for_window(p, source, y, x, channel, [&](int, float4 v) {
    total =
        count++ == 0 ? v : float4{merge(total.x, v.x), merge(total.y, v.y), merge(total.z, v.z), merge(total.w, v.w)};
  });
  if (average) {
    if (p.counts_padding)
      count = padded_pixels(p.source.height, y * p.stride - p.pad_rows, p.window_rows, p.pad_rows) *
              padded_pixels(p.source.width, x * p.stride - p.pad_columns, p.window_columns, p.pad_columns);
    const float share = 1.f / static_cast<float>(count);
    total = {total.x * share, total.y * share, total.z * share, total.w * share};
  }
  if (p.mask) {
    const uint8_t* mask = p.mask + static_cast<int64_t>(sample) * p.mask_stride;
    auto kept = [&](float v, int c) { return c < 0 || c >= p.in_channels || mask[c] != 0 ? v : 0.f; };
    total = {kept(total.x, channel), kept(total.y, channel + 1), kept(total.z, channel + 2),
             kept(total.w, channel + 3)};
  }
  return total;
}

template <class T, bool kWeighs>
__device__ inline float4 resample(const ResampleParams& p, int sample, const T* source, int pixel, int group) {
  const Map& s = p.source;
  const int x = pixel % p.out.width, y = pixel / p.out.width;
  if constexpr (kWeighs) return weigh_window<T>(p, source, y, x, group);
  auto channels = [&](int row, int column) {
    return load_channels(source + static_cast<int64_t>(row * s.width + column) * s.channels,
                         group * kGroup - p.out_offset, p.in_channels, p.src_offset);
  };
  switch (p.op) {
    case Op::kSubsample:
      return channels(y * p.stride, x * p.stride);
    case Op::kPoolSums:
      return channels(y, x);
    default:
      return pool_window<T>(p, sample, source, y, x, group);
  }
}

// kWeighs: of an op with weights. Left to itself the assembler makes room for more than three blocks of a
// multiprocessor by spilling some registers.
template <class T, bool kWeighs>
__global__ void __launch_bounds__(kThreads, 3) resample_kernel(const __grid_constant__ ResampleParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int tile = blockIdx.x % p.pooling.tiles, sample = pick_sample(p.samples, blockIdx.x / p.pooling.tiles);
  if (sample < 0) return;
  float* sums = shared_memory<float>(kHeaderBytes);  // [rows][groups of four]
  const T* source = static_cast<const T*>(p.source.data) + sample * p.source.sample_stride;
  T* out = static_cast<T*>(p.out.data) + sample * p.out.sample_stride;
  const int first = tile * kStripPixels, last = min(first + kStripPixels, p.out.width * p.out.height);
  const int rows = max(1, kThreads / p.groups), row = threadIdx.x / p.groups;
  const bool keeps_front = p.windowed && p.out_offset % kGroup != 0;
  for (int group = threadIdx.x % p.groups; row < rows && group < p.groups; group += kThreads) {
    float4 total = {};
    for (int pixel = first + row; pixel < last; pixel += rows) {
      float4 v = resample<T, kWeighs>(p, sample, source, pixel, p.first_group + group);
      if (keeps_front && group == 0) {  // channels of the group that belong to others
        const float4 old =
            Numeric<T>::widen(load_quad<T>(out, static_cast<int64_t>(pixel) * p.out.channels + p.first_group * kGroup));
        const int front = p.out_offset % kGroup;
        v.x = old.x, v.y = front > 1 ? old.y : v.y, v.z = front > 2 ? old.z : v.z;
      }
      total.x += v.x, total.y += v.y, total.z += v.z, total.w += v.w;
      if (p.op != Op::kPoolSums)
        store_quad<T>(out, static_cast<int64_t>(pixel) * p.out.channels + (p.first_group + group) * kGroup,
                      Numeric<T>::narrow(v));
    }
    if (p.pooling.pooled) reinterpret_cast<float4*>(sums)[row * p.groups + group] = total;
  }
  const int64_t macs = kWeighs ? int64_t{last - first} * p.window_rows * p.window_columns * p.in_channels : 0;
  const float* pooled = pool_tile(p.pooling, sample, tile, sums, rows, p.groups * kGroup, 0, p.groups * kGroup, macs,
                                  shared_memory<int>());
  if (pooled) decide_units(p.gates, pooled, sample, p.pooling.macs, sums);
}

}  // namespace dsn::cuda
