// subsample, max_pool, avg_pool, pool_sums, add: what has no weights. A block does 64 pixels of one sample; a thread
// keeps to its group of channels, so neighbours read neighbours and sums need no shuffle.
#pragma once

#include "cuda/unit_gate.cuh"

namespace dsn::cuda {

// Four channels of a pixel from channel `first` on, zero where they are not among the `count` that are read.
template <class T>
__device__ inline float4 load_channels(const T* pixel, int first, int count, int src_offset) {
  if (first % kGroup == 0 && src_offset % kGroup == 0 && first >= 0 && first + kGroup <= count)
    return Numeric<T>::widen(load_quad<T>(pixel, src_offset + first));
  float v[kGroup];
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    v[i] = first + i >= 0 && first + i < count ? static_cast<float>(pixel[src_offset + first + i]) : 0.f;
  return {v[0], v[1], v[2], v[3]};
}

template <class T>
__device__ inline float4 resample(const ResampleParams& p, const T* source, const T* out, int pixel, int group) {
  const Map& s = p.source;
  const int x = pixel % p.out.width, y = pixel / p.out.width;
  auto at = [&](int row, int column) { return source + static_cast<int64_t>(row * s.width + column) * s.channels; };
  auto channels = [&](const T* from) {
    return load_channels(from, group * kGroup - p.out_offset, p.in_channels, p.src_offset);
  };
  switch (p.op) {
    case Op::kSubsample:
      return channels(at(y * p.stride, x * p.stride));
    case Op::kPoolSums:
      return channels(at(y, x));
    case Op::kAdd: {
      const float4 a =
          Numeric<T>::widen(load_quad<T>(out, static_cast<int64_t>(pixel) * p.out.channels + group * kGroup));
      const float4 b = channels(at(y, x));
      return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
    }
    default: {
      const bool average = p.op == Op::kAvgPool;
      const float4 a = channels(at(2 * y, 2 * x)), b = channels(at(2 * y, 2 * x + 1));
      const float4 c = channels(at(2 * y + 1, 2 * x)), d = channels(at(2 * y + 1, 2 * x + 1));
      // The larger, or a NaN.
      auto larger = [](float v, float w) { return v < w || w != w ? w : v; };
      auto pool = [&](float v, float w, float t, float u) {
        return average ? 0.25f * ((v + w) + (t + u)) : larger(larger(v, w), larger(t, u));
      };
      return {pool(a.x, b.x, c.x, d.x), pool(a.y, b.y, c.y, d.y), pool(a.z, b.z, c.z, d.z), pool(a.w, b.w, c.w, d.w)};
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) resample_kernel(const __grid_constant__ ResampleParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int tile = blockIdx.x % p.pooling.tiles, sample = pick_sample(p.samples, blockIdx.x / p.pooling.tiles);
  if (sample < 0) return;
  float* sums = shared_memory<float>(kHeaderBytes);  // [rows][groups of four]
  const T* source = static_cast<const T*>(p.source.data) + sample * p.source.sample_stride;
  T* out = static_cast<T*>(p.out.data) + sample * p.out.sample_stride;
  const int first = tile * kStripPixels, last = min(first + kStripPixels, p.out.width * p.out.height);
  const int rows = max(1, kThreads / p.groups), row = threadIdx.x / p.groups;
  for (int group = threadIdx.x % p.groups; row < rows && group < p.groups; group += kThreads) {
    float4 total = {};
    for (int pixel = first + row; pixel < last; pixel += rows) {
      const float4 v = resample<T>(p, source, out, pixel, p.first_group + group);
      total.x += v.x, total.y += v.y, total.z += v.z, total.w += v.w;
      if (p.op != Op::kPoolSums)
        store_quad<T>(out, static_cast<int64_t>(pixel) * p.out.channels + (p.first_group + group) * kGroup,
                      Numeric<T>::narrow(v));
    }
    if (p.pooling.pooled) reinterpret_cast<float4*>(sums)[row * p.groups + group] = total;
  }
  const float* pooled =
      pool_tile(p.pooling, sample, tile, sums, rows, p.groups * kGroup, 0, p.groups * kGroup, 0, shared_memory<int>());
  if (pooled) decide_units(p.gates, pooled, sample, p.pooling.macs, sums);
}

}  // namespace dsn::cuda
