// pointwise, upsample: what is done to each value by itself. A block does 64 pixels of one sample's source; a thread
// keeps to its group of channels of the destination.
#pragma once

#include "cuda/routing.cuh"

namespace dsn::cuda {

// dst = activation([dst +] factor (scale src + shift)) at each of the times x times pixels that one of the source
// becomes. `src` and `dst` may be the same: a group is read and written by one thread. Four blocks of a multiprocessor:
// for more, the assembler spills on some architectures.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) pointwise_kernel(const __grid_constant__ PointwiseParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int tile = blockIdx.x % p.tiles, sample = pick_sample(p.samples, blockIdx.x / p.tiles);
  if (sample < 0) return;
  const T* source = static_cast<const T*>(p.source.data) + sample * p.source.sample_stride;
  T* out = static_cast<T*>(p.out.data) + sample * p.out.sample_stride;
  const int first = tile * kStripPixels, last = min(first + kStripPixels, p.source.width * p.source.height);
  const int rows = max(1, kThreads / p.groups), row = threadIdx.x / p.groups;
  for (int group = threadIdx.x % p.groups; row < rows && group < p.groups; group += kThreads) {
    const int place = (p.first_group + group) * kGroup, channel = place - p.out_offset;
    float4 scale = {1.f, 1.f, 1.f, 1.f}, shift = {};
    if (p.scale) {
      scale = load_channels(p.scale, channel, p.in_channels, 0);
      shift = load_channels(p.shift, channel, p.in_channels, 0);
    }
    if (p.factor) {
      const float4 f = load_channels(p.factor + sample * p.factor_row, channel, p.in_channels, 0);
      scale = {f.x * scale.x, f.y * scale.y, f.z * scale.z, f.w * scale.w};
      shift = {f.x * shift.x, f.y * shift.y, f.z * shift.z, f.w * shift.w};
    }
    // Of the group's channels some may belong to others, which keep what is there.
    const bool keeps = channel < 0 || (p.keeps_behind && channel + kGroup > p.in_channels);
    auto finish = [&](int i, float old, float v) {
      const int c = channel + i;
      if (c >= 0 && c < p.in_channels) return activate(p.activation, p.accumulate ? old + v : v);
      return c < 0 || p.keeps_behind ? old : 0.f;
    };
    int y = (first + row) / p.source.width, x = (first + row) % p.source.width;
    for (int pixel = first + row; pixel < last; pixel += rows, x += rows) {
      for (; x >= p.source.width; x -= p.source.width) ++y;
      float4 v =
          load_channels(source + static_cast<int64_t>(pixel) * p.source.channels, channel, p.in_channels, p.src_offset);
      v = {fmaf(scale.x, v.x, shift.x), fmaf(scale.y, v.y, shift.y), fmaf(scale.z, v.z, shift.z),
           fmaf(scale.w, v.w, shift.w)};
      for (int i = y * p.times; i < (y + 1) * p.times; ++i)
        for (int j = x * p.times; j < (x + 1) * p.times; ++j) {
          T* to = out + static_cast<int64_t>(i * p.out.width + j) * p.out.channels + place;
          float4 old = {};
          if (p.accumulate || keeps) old = Numeric<T>::widen(load_quad<T>(to, 0));
          store_quad<T>(to, 0,
                        Numeric<T>::narrow({finish(0, old.x, v.x), finish(1, old.y, v.y), finish(2, old.z, v.z),
                                            finish(3, old.w, v.w)}));
        }
    }
  }
}

}  // namespace dsn::cuda
