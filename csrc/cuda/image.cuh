// How an image enters a state (load, stem) and a map leaves one (store).
#pragma once

#include "cuda/preact_conv2d.cuh"

namespace dsn::cuda {

// Activations of a 3x3 stem: the depth is channels and taps of the image, tap fastest.
template <class T>
struct ImageOperands {
  const StemParams& params;
  Weights<T> weights;
  int64_t image;  // offset of the sample's
  int column;
  int step;
  int pixel[2];

  __device__ int group(int slot) const { return step * 4 + slot; }
  __device__ Quad<T> a(int group, int, int r) const {
    float v[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const int k = group * kGroup + i, channel = k / 9, tap = k % 9;
      const int y = pixel[r] / params.width + tap / 3 - 1, x = pixel[r] % params.width + tap % 3 - 1;
      const bool inside = channel < params.in_channels && y >= 0 && y < params.height && x >= 0 && x < params.width;
      v[i] = inside ? load_value<T>(params.image, params.image_is_float,
                                    image + (static_cast<int64_t>(channel) * params.height + y) * params.width + x)
                    : 0.f;
    }
    return Numeric<T>::narrow({v[0], v[1], v[2], v[3]});
  }
  __device__ Quad<T> b(int group, int n) const { return weights.load(0, group, column + n); }
};

// A block of four warps does 64 pixels and kPointwiseTiles x 8 channels of one sample.
template <class T>
__global__ void __launch_bounds__(kPointwiseThreads) stem_kernel(const __grid_constant__ StemParams p) {
  constexpr int kNt = kPointwiseTiles;
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  BlockHeader* header = shared_memory<BlockHeader>();
  float* sums = shared_memory<float>(kHeaderBytes);
  const int sample = pick_sample(p.samples, blockIdx.x / p.pooling.tiles), tile = blockIdx.x % p.pooling.tiles;
  if (sample < 0) return;
  const int warp = threadIdx.x / 32, first_row = tile * kPointwisePixels + warp * 16;
  const int pixels = p.height * p.width, first_column = blockIdx.y * kNt * 8;
  const int tiles = min(kNt, (p.columns - first_column) / 8);
  Accumulator<1, kNt> d;
  clear<1, kNt>(d);
  if (first_row < pixels) {
    ImageOperands<T> operands{p,
                              {static_cast<const T*>(p.weight), p.depth_groups, p.columns * kGroup},
                              static_cast<int64_t>(sample) * p.in_channels * pixels,
                              first_column};
#pragma unroll
    for (int r = 0; r < 2; ++r) operands.pixel[r] = min(first_row + row_of(0, r), pixels - 1);
#pragma unroll 1
    for (operands.step = 0; operands.step < p.depth_groups / 4; ++operands.step)
      multiply<T, false, 1, kNt>(d, operands, tiles);
  }
  ColumnSums<kNt> total;
  T* out = static_cast<T*>(p.out) + sample * p.out_stride;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int pixel = first_row + row_of(0, r);
    if (pixel >= pixels) continue;
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt) {
      const int n = first_column + column_of(nt);
      if (nt >= tiles) continue;
      const float v0 = d[0][nt][2 * r], v1 = d[0][nt][2 * r + 1];
      if (n < p.out_groups * kGroup) store_pair<T>(out, static_cast<int64_t>(pixel) * p.pixel_stride + n, v0, v1);
      total.sum[nt][0] += v0;
      total.sum[nt][1] += v1;
    }
  }
  total.store(sums + warp * kNt * 8, tiles);
  const int own = min(kPointwisePixels, pixels - tile * kPointwisePixels);
  const int channels = max(0, min(kNt * 8, p.out_channels - first_column));
  finish(p.pooling, sample, tile, sums, kPointwiseThreads / 32, kNt * 8, first_column, tiles * 8,
         static_cast<unsigned long long>(own) * channels * 9 * p.in_channels, header->scratch);
}

// [C][H][W] of each sample into a state's first channels. A block does 64 pixels of one sample; a warp 32 pixels of a
// group at a time.
template <class T>
__global__ void __launch_bounds__(kThreads) load_kernel(const __grid_constant__ LoadParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  BlockHeader* header = shared_memory<BlockHeader>();
  float* sums = shared_memory<float>(kHeaderBytes);  // [2][channels]
  const int tile = blockIdx.x % p.pooling.tiles, sample = pick_sample(p.samples, blockIdx.x / p.pooling.tiles);
  if (sample < 0) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, half = warp % 2;
  const int pixel = tile * kStripPixels + half * 32 + lane, groups = (p.channels + kGroup - 1) / kGroup;
  for (int g = warp / 2; g < groups; g += kWarps / 2) {
    float v[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      const int c = g * kGroup + i;
      const int64_t at = sample * p.image_stride + p.first + static_cast<int64_t>(c) * p.pixels + pixel;
      v[i] = c < p.channels && pixel < p.pixels ? load_value<T>(p.image, p.image_is_float, at) : 0.f;
      const float total = warp_sum(v[i]);
      if (lane == 0) sums[half * groups * kGroup + c] = total;
    }
    if (pixel < p.pixels)
      store_quad<T>(p.out, sample * p.out_stride + static_cast<int64_t>(pixel) * p.pixel_stride + g * kGroup,
                    Numeric<T>::narrow({v[0], v[1], v[2], v[3]}));
  }
  finish(p.pooling, sample, tile, sums, 2, groups * kGroup, 0, groups * kGroup, 0, header->scratch);
}

// A state to [C][H][W] of each sample; skipped slices leave as zeros.
template <class T>
__global__ void __launch_bounds__(kThreads) store_kernel(const __grid_constant__ StoreParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const Source& s = p.source;
  const int blocks = (s.pixels + kStripPixels - 1) / kStripPixels;
  const int sample = pick_sample(p.samples, blockIdx.x / blocks);
  if (sample < 0) return;
  const uint8_t* taken = s.taken + sample * s.gates;
  int count = 0;
  if (s.copy_stride)
    for (int l = 0; l < s.slices; ++l) count += taken[l];
  const T* state = static_cast<const T*>(s.data) + state_offset(s, sample, count);
  const int first = blockIdx.x % blocks * kStripPixels;
  for (int i = threadIdx.x; i < p.channels * kStripPixels; i += blockDim.x) {
    const int pixel = first + i % kStripPixels, c = i / kStripPixels;
    if (pixel >= s.pixels) continue;
    int channel = c, groups = s.first_groups;
    int64_t base = 0;
    bool live = true;
    if (c >= s.first_channels) {
      const int slice = (c - s.first_channels) / s.slice_channels;
      channel = (c - s.first_channels) % s.slice_channels;
      groups = s.slice_groups;
      base = static_cast<int64_t>(s.first_groups + slice * s.slice_groups) * kGroup * s.pixels;
      live = taken[slice] != 0;
    }
    const float v =
        live ? static_cast<float>(state[base + static_cast<int64_t>(pixel) * groups * kGroup + channel]) : 0.f;
    store_value<T>(p.map, p.map_is_float, sample * p.map_stride + p.first + static_cast<int64_t>(c) * s.pixels + pixel,
                   v);
  }
}

}  // namespace dsn::cuda
