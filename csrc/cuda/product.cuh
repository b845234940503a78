// Matrix products of tiles: activations of 16 pixels by weights of 8 output channels, a k-step of four groups at a
// time.
#pragma once

#include "cuda/element.cuh"

namespace dsn::cuda {

// The accumulators of a warp for kMt x 16 pixels and kNt x 8 channels lie as mma.sync leaves them: of tile (mt, nt),
// value i of lane 4 g + t is pixel mt * 16 + g + 8 (i / 2), channel nt * 8 + 2 t + i % 2.
template <int kMt, int kNt>
using Accumulator = float[kMt][kNt][4];

// How many k-steps to unroll: float32's are long, and more of them spill.
template <class T, int kHalf, int kFloat = 1>
constexpr int kUnrolled = sizeof(T) == 2 ? kHalf : kFloat;

// d += a k-step. `operands` says where its values are:
//   group(slot)      what a lane keeps about group `slot` (0 to 3) of the k-step
//   a(group, mt, r)  four channels of pixel mt * 16 + lane / 4 + 8 r
//   b(group, n)      the weights of output channel n for these four
// With 16-bit elements lane t of a quad asks for group t only. Float32 is multiplied by the ordinary units: exact, and
// each lane asks for all four groups. kExact: all kNt tiles are wanted, else the first `tiles`.
template <class T, bool kExact, int kMt, int kNt, class Operands>
__device__ inline void multiply(Accumulator<kMt, kNt>& d, const Operands& operands, int tiles) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  if constexpr (sizeof(T) == 2) {
    const auto group = operands.group(t);
    uint32_t a[kMt][4];
#pragma unroll
    for (int mt = 0; mt < kMt; ++mt) {
      const uint2 upper = operands.a(group, mt, 0), lower = operands.a(group, mt, 1);
      a[mt][0] = upper.x, a[mt][1] = lower.x, a[mt][2] = upper.y, a[mt][3] = lower.y;
    }
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt) {
      if (!kExact && nt >= tiles) continue;
      const uint2 weights = operands.b(group, nt * 8 + g);
      const uint32_t b[2] = {weights.x, weights.y};
#pragma unroll
      for (int mt = 0; mt < kMt; ++mt) ptx::mma_m16n8k16<T>(d[mt][nt], a[mt], b);
    }
  } else {
#pragma unroll 1
    for (int slot = 0; slot < 4; ++slot) {
      const auto group = operands.group(slot);
      float4 a[kMt][2];
#pragma unroll
      for (int mt = 0; mt < kMt; ++mt) a[mt][0] = operands.a(group, mt, 0), a[mt][1] = operands.a(group, mt, 1);
#pragma unroll
      for (int nt = 0; nt < kNt; ++nt) {
        if (!kExact && nt >= tiles) continue;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float4 b = operands.b(group, nt * 8 + 2 * t + i);
#pragma unroll
          for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              float& sum = d[mt][nt][2 * r + i];
              sum = fmaf(a[mt][r].x, b.x, sum);
              sum = fmaf(a[mt][r].y, b.y, sum);
              sum = fmaf(a[mt][r].z, b.z, sum);
              sum = fmaf(a[mt][r].w, b.w, sum);
            }
        }
      }
    }
  }
}

template <int kMt, int kNt>
__device__ inline void clear(Accumulator<kMt, kNt>& d) {
#pragma unroll
  for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt)
#pragma unroll
      for (int i = 0; i < 4; ++i) d[mt][nt][i] = 0;
}

template <int kMt, int kNt>
__device__ inline void add(Accumulator<kMt, kNt>& d, const Accumulator<kMt, kNt>& part) {
#pragma unroll
  for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt)
#pragma unroll
      for (int i = 0; i < 4; ++i) d[mt][nt][i] += part[mt][nt][i];
}

// The pixel, of its warp's first tile, that a lane's row slot (mt, r) is.
__device__ inline int row_of(int mt, int r) { return mt * 16 + threadIdx.x % 32 / 4 + 8 * r; }
// The even one of the two channels of tile nt that a lane holds.
__device__ inline int column_of(int nt) { return nt * 8 + 2 * (threadIdx.x % 4); }

// Sums of a warp's channels over its pixels: each lane's own, then over the lanes that hold the same channels.
template <int kNt>
struct ColumnSums {
  float sum[kNt][2] = {};

  // Leaves the sums of a warp in shared memory, [kNt * 8].
  __device__ void store(float* sums, int tiles) {
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float v = sum[nt][i];
        for (int d = 4; d < 32; d *= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
        if (threadIdx.x % 32 < 4 && nt < tiles) sums[column_of(nt) + i] = v;
      }
  }
};

// The weights of a product, [tap][group][column][4], `pitch` elements from one group to the next.
template <class T>
struct Weights {
  const T* base;
  int groups, pitch;
  __device__ Quad<T> load(int tap, int group, int column) const {
    return load_quad<T>(base, static_cast<int64_t>(tap * groups + group) * pitch + column * kGroup);
  }
};

}  // namespace dsn::cuda
