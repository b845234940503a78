// preact_conv2d: a transition, BN-ReLU-1x1-average-pool, with an optional guide behind its input. The pool goes first:
// it commutes with the 1x1 and leaves a quarter of its work. Skipped slices are dropped and their constants added.
#pragma once

#include "cuda/dense_layer.cuh"

namespace dsn::cuda {

// Where a pixel of the large map lies between the pixels of the small one, along one axis: half-pixel centres
// (align_corners=False).
struct Between {
  int low, high;
  float weight;
  __device__ Between(int i, int from, int to) {
    const float centre = fmaxf(0.f, (i + 0.5f) * (static_cast<float>(from) / to) - 0.5f);
    low = min(static_cast<int>(centre), from - 1);
    high = min(low + 1, from - 1);
    weight = centre - low;
  }
};

// Activations of a transition: a 2x2 mean of relu(norm(.)), of the source or of the guide enlarged to its size.
template <class T, bool kGuide>
struct PooledOperands {
  const TransitionParams& params;
  const Source& source;  // what is read: the source or the guide
  const T* state;        // of the sample
  const GroupRef* groups;
  Weights<T> weights;
  int first_id, column;
  int step;
  int y[2], x[2];  // of the pooled pixels

  struct Group {
    int id, stride;
    const T* data;
  };
  __device__ Group group(int slot) const {
    const GroupRef ref = groups[step * 4 + slot];
    return {ref.id < 0 ? -1 : ref.id + first_id, pixel_stride(source, ref.id), state + ref.offset};
  }
  __device__ float4 at(const Group& group, int row, int column) const {
    return Numeric<T>::widen(
        load_quad<T>(group.data, static_cast<int64_t>(row * source.width + column) * group.stride));
  }
  __device__ float4 enlarged(const Group& group, int row, int column) const {
    const Between v(row, source.height, params.source.height), h(column, source.width, params.source.width);
    const float4 a = at(group, v.low, h.low), b = at(group, v.low, h.high);
    const float4 c = at(group, v.high, h.low), d = at(group, v.high, h.high);
    auto mix = [&](float a, float b, float c, float d) {
      const float upper = a + h.weight * (b - a), lower = c + h.weight * (d - c);
      return upper + v.weight * (lower - upper);
    };
    return {mix(a.x, b.x, c.x, d.x), mix(a.y, b.y, c.y, d.y), mix(a.z, b.z, c.z, d.z), mix(a.w, b.w, c.w, d.w)};
  }
  __device__ Quad<T> a(const Group& group, int, int r) const {
    if (group.id < 0) return {};
    float4 total = {};
#pragma unroll(kGuide ? 1 : 4)
    for (int i = 0; i < 4; ++i) {
      const int row = 2 * y[r] + i / 2, column = 2 * x[r] + i % 2;
      float4 v;
      if constexpr (kGuide) {
        v = enlarged(group, row, column);
      } else {
        v = at(group, row, column);
      }
      v = normalise_wide(v, params.norm, group.id);
      total.x += v.x, total.y += v.y, total.z += v.z, total.w += v.w;
    }
    return Numeric<T>::narrow({total.x / 4, total.y / 4, total.z / 4, total.w / 4});
  }
  __device__ Quad<T> b(const Group& group, int n) const {
    if (group.id < 0) return {};
    return weights.load(0, group.id, column + n);
  }
};

// A block of four warps does 64 pixels and kTiles x 8 channels of one sample.
constexpr int kPointwiseTiles = 8;
template <class T>
__global__ void __launch_bounds__(kPointwiseThreads, kLeastBlocks)
    transition_kernel(const __grid_constant__ TransitionParams p) {
  constexpr int kNt = kPointwiseTiles;
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int tile = blockIdx.x % p.pooling.tiles, first_column = blockIdx.y * kNt * 8;
  unsigned* masks = shared_memory<unsigned>(p.at_masks);
  GroupRef* groups = shared_memory<GroupRef>(p.at_groups);
  GroupRef* guide_groups = shared_memory<GroupRef>(p.at_guide_groups);
  float* bias = shared_memory<float>(p.at_bias);
  float* sums = shared_memory<float>(p.at_sums);
  if (!begin_block(p.samples, p.source, p.pooling.tiles, groups, masks)) return;
  BlockHeader* header = shared_memory<BlockHeader>();
  const int sample = header->sample;
  const Live live = header->live;
  unsigned* guide_masks = masks + (p.source.slices + 31) / 32;
  if (p.guide.data) {
    __syncthreads();
    if (threadIdx.x < 32) {
      const Live found = find_live(p.guide, sample, guide_groups, guide_masks);
      if (threadIdx.x == 0) header->live = found;
    }
    __syncthreads();
  }
  const Live guide = p.guide.data ? header->live : Live{};
  for (int c = threadIdx.x; c < kNt * 8; c += blockDim.x) {
    const int n = first_column + c;
    float v = 0;
    if (n < p.columns) {
      for (int s = 0; p.source.slice_groups && s < p.source.slices; ++s)
        if (!slice_is_live(masks, s)) v += p.constants[s * p.columns + n];
      for (int s = 0; p.guide.slice_groups && s < p.guide.slices; ++s)
        if (!slice_is_live(guide_masks, s)) v += p.constants[(p.source.slices + s) * p.columns + n];
    }
    bias[c] = v;
  }
  __syncthreads();

  const int warp = threadIdx.x / 32, first_row = tile * kPointwisePixels + warp * 16;
  const int tiles = min(kNt, (p.columns - first_column) / 8);
  const Weights<T> weights{static_cast<const T*>(p.weight),
                           p.source_groups + p.guide.first_groups + p.guide.slices * p.guide.slice_groups,
                           p.columns * kGroup};
  Accumulator<1, kNt> d;
  clear<1, kNt>(d);
  auto accumulate = [&](auto operands, int steps) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int pixel = min(first_row + row_of(0, r), p.out_pixels - 1);
      operands.y[r] = pixel / p.out_width;
      operands.x[r] = pixel % p.out_width;
    }
#pragma unroll 1
    for (operands.step = 0; operands.step < steps; ++operands.step) multiply<T, false, 1, kNt>(d, operands, tiles);
  };
  if (first_row < p.out_pixels) {
    const T* state = static_cast<const T*>(p.source.data) + state_offset(p.source, sample, live.taken);
    accumulate(PooledOperands<T, false>{p, p.source, state, groups, weights, 0, first_column}, live.groups / 4);
    if (p.guide.data) {
      const T* small = static_cast<const T*>(p.guide.data) + state_offset(p.guide, sample, guide.taken);
      accumulate(PooledOperands<T, true>{p, p.guide, small, guide_groups, weights, p.source_groups, first_column},
                 guide.groups / 4);
    }
  }
  ColumnSums<kNt> total;
  T* out = static_cast<T*>(p.out) + sample * p.out_stride;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int pixel = first_row + row_of(0, r);
    if (pixel >= p.out_pixels) continue;
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt) {
      if (nt >= tiles) continue;
      const int c = column_of(nt);
      const float v0 = d[0][nt][2 * r] + bias[c], v1 = d[0][nt][2 * r + 1] + bias[c + 1];
      if (first_column + c < p.out_groups * kGroup)
        store_pair<T>(out, static_cast<int64_t>(pixel) * p.out_groups * kGroup + first_column + c, v0, v1);
      total.sum[nt][0] += v0;
      total.sum[nt][1] += v1;
    }
  }
  total.store(sums + warp * kNt * 8, tiles);
  const int pixels = min(kPointwisePixels, p.out_pixels - tile * kPointwisePixels);
  const int channels = max(0, min(kNt * 8, p.out_channels - first_column));
  const unsigned long long macs = static_cast<unsigned long long>(pixels) * channels * (live.channels + guide.channels);
  finish(p.pooling, sample, tile, sums, kPointwiseThreads / 32, kNt * 8, first_column, tiles * 8, macs,
         header->scratch);
}

}  // namespace dsn::cuda
