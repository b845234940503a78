// A block's part of a map and of a 3x3's weights in shared memory, beside those of the other blocks of a cluster, and
// the convolutions between such maps.
#pragma once

#include "cuda/tile.cuh"
#include "cuda/unit_gate.cuh"

namespace dsn::cuda {

// Starts to copy floats, in whole pieces of 16 bytes.
__device__ inline void copy_floats(float* to, const float* from, int count) {
  for (int i = threadIdx.x; i < (count + 3) / 4; i += kStageThreads)
    ptx::cp_async<16>(ptx::shared_address(to + 4 * i), from + 4 * i);
}

// d += the products of a 3x3 or 1x1 for 8 pixels side by side in 2 kMt rows above one another, of every `every`-th
// k-step from `first` on. `pixel`: a lane's, in the frame at the window's upper left; `down`: elements to the one
// below.
template <class T, int kMt, int kNt, int kTaps>
__device__ inline void multiply_taps(const T* pixel, int down, int row_pitch, int cell, const Weights<T>& weights,
                                     int column, int first, int every, Accumulator<kMt, kNt>& d) {
  SharedOperands<T, kMt> operands{pixel, weights, column};
#pragma unroll
  for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
    for (int r = 0; r < 2; ++r) operands.offset[mt][r] = (2 * mt + r) * down;
#pragma unroll 1
  for (operands.tap = 0; operands.tap < kTaps; ++operands.tap) {
    operands.tap_offset = kTaps == 9 ? operands.tap / 3 * row_pitch + operands.tap % 3 * cell : row_pitch + cell;
#pragma unroll 1
    for (operands.step = first; operands.step < weights.groups / 4; operands.step += every)
      multiply<T, true, kMt, kNt>(d, operands, kNt);
  }
}

// As multiply_taps for a 3x3 of stride 1. With 16-bit elements a row of pixels, half of what an instruction takes, is
// loaded once and serves all of the window's rows.
template <class T, int kMt, int kNt>
__device__ inline void multiply_window(const T* pixel, int row_pitch, int cell, const Weights<T>& weights, int column,
                                       int first, int every, Accumulator<kMt, kNt>& d) {
  if constexpr (sizeof(T) == 2) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll 1
    for (int step = first; step < weights.groups / 4; step += every) {
      const int group = step * 4 + t;
#pragma unroll
      for (int x = 0; x < 3; ++x) {
        Quad<T> a[2 * kMt + 2], b[3][kNt];
#pragma unroll
        for (int y = 0; y < 2 * kMt + 2; ++y) a[y] = load_quad<T>(pixel, y * row_pitch + x * cell + group * kGroup);
#pragma unroll
        for (int y = 0; y < 3; ++y)
#pragma unroll
          for (int nt = 0; nt < kNt; ++nt) b[y][nt] = weights.load(3 * y + x, group, column + nt * 8 + g);
#pragma unroll
        for (int y = 0; y < 3; ++y)
#pragma unroll
          for (int mt = 0; mt < kMt; ++mt) {
            const Quad<T>&upper = a[2 * mt + y], &lower = a[2 * mt + y + 1];
            const uint32_t pixels[4] = {upper.x, lower.x, upper.y, lower.y};
#pragma unroll
            for (int nt = 0; nt < kNt; ++nt) ptx::mma_m16n8k16<T>(d[mt][nt], pixels, {b[y][nt].x, b[y][nt].y});
          }
      }
    }
  } else {
    multiply_taps<T, kMt, kNt, 9>(pixel, row_pitch, row_pitch, cell, weights, column, first, every, d);
  }
}

template <class T, int kTiles>
struct StageBlock {
  static constexpr int kMt = kTiles, kNt = kTiles;
  const StageParams& all;
  const StageMap& p;
  int rank, row_part, column_part;
  MapTile tile;
  T *state, *mid;   // [cell][stride], a frame around the own pixels
  float* received;  // [channel][received_pitch]: sums of what each warp of the cluster wrote

  __device__ StageBlock(const StageParams& all, const StageMap& p, int rank)
      : all(all),
        p(p),
        rank(rank),
        row_part(rank / p.across),
        column_part(rank % p.across),
        tile(row_part, p.rows, p.map.width, 1, p.map.width, p.map.height),
        state(shared_memory<T>(p.at_state)),
        mid(shared_memory<T>(p.at_mid)),
        received(shared_memory<float>(p.at_received)) {}

  __device__ int channels() const { return p.groups * kGroup; }
  __device__ static T* global(const Map& map, int sample, int y, int x) {
    return static_cast<T*>(map.data) + sample * map.sample_stride +
           static_cast<int64_t>(y * map.width + x) * map.channels;
  }
  template <class U>
  __device__ const U* field(int32_t place) const {
    return reinterpret_cast<const U*>(all.weights + static_cast<int64_t>(place) * 16);
  }

  // Starts to copy `rows` x `pitch` cells of a map from (top, left) on; zeros outside of it and behind its channels.
  __device__ void fetch_cells(const Map& map, int sample, int top, int left, int rows, int pitch, int stride,
                              int groups, T* to) const {
    for (int i = threadIdx.x; i < rows * pitch * groups; i += kStageThreads) {
      const int cell = i / groups, group = i % groups, y = top + cell / pitch, x = left + cell % pitch;
      T* at = to + cell * stride + group * kGroup;
      if (group < map.channels / kGroup && y >= 0 && y < map.height && x >= 0 && x < map.width)
        ptx::cp_async<kGroup * sizeof(T)>(ptx::shared_address(at), global(map, sample, y, x) + group * kGroup);
      else
        store_quad<T>(at, 0, {});
    }
  }
  // Zeros where nothing has been written yet.
  __device__ void clear_frame(T* frame) const {
    for (int i = threadIdx.x; i < p.frame_rows * p.pitch * p.groups; i += kStageThreads)
      store_quad<T>(frame, i / p.groups * p.stride + i % p.groups * kGroup, {});
  }
  __device__ void clear_sums() const {
    for (int i = threadIdx.x; i < channels() * p.received_pitch; i += kStageThreads) received[i] = 0;
  }
  __device__ void store(int sample) const {
    const int groups = p.map.channels / kGroup;
    for (int i = column_part * kStageThreads + threadIdx.x; i < tile.pixels() * groups; i += p.across * kStageThreads) {
      const int y = i / groups / tile.columns, x = i / groups % tile.columns, group = i % groups;
      store_quad<T>(global(p.map, sample, tile.y + y, x), group * kGroup,
                    load_quad<T>(state, ((y + 1) * p.pitch + x + 1) * p.stride + group * kGroup));
    }
  }

  // Starts to copy weights, `rows` groups of them, and bias of a convolution for the own columns.
  __device__ void fetch(int32_t weight, int32_t bias, int rows, int at_weights, int at_bias) const {
    constexpr int kPiece = 16 / sizeof(T);
    const int row = p.columns * kGroup, pieces = row / kPiece;
    const T* from = field<T>(weight) + column_part * row;
    T* to = shared_memory<T>(at_weights);
    for (int i = threadIdx.x; i < rows * pieces; i += kStageThreads) {
      const int group = i / pieces, piece = i % pieces * kPiece;
      ptx::cp_async<16>(ptx::shared_address(to + group * p.weight_pitch + piece),
                        from + static_cast<int64_t>(group) * channels() * kGroup + piece);
    }
    copy_floats(shared_memory<float>(at_bias), field<float>(bias) + column_part * p.columns, p.columns);
  }
  // Starts to copy the weights of a unit's first or second convolution, of a map with so many groups.
  __device__ void fetch_conv(const StageUnit& unit, int conv, int groups) const {
    fetch(unit.weight[conv], unit.bias[conv], 9 * groups, p.at_weights + conv * p.weight_bytes,
          p.at_bias + conv * p.bias_bytes);
    ptx::cp_async_commit();
  }
  // Starts to copy the weights of the shortcut that leads to this map.
  __device__ void fetch_shortcut(int groups) const {
    fetch(p.shortcut, p.shortcut_bias, groups, p.at_shortcut, p.at_bias + 2 * p.bias_bytes);
    ptx::cp_async_commit();
  }

  // Writes two channels of a pixel to all blocks in whose frame it lies. The padding of k-steps stays zero, or an
  // infinite value there would make a NaN of its product with a zero weight.
  __device__ void write(T* frame, int y, int x, int column, float v0, float v1) const {
    if (column >= p.map.channels) return;
    auto put = [&](int part, int row) {
      for (int c = 0; c < p.across; ++c) {
        const int to = part * p.across + c;
        store_pair<T>(to == rank ? frame : ptx::map_shared(frame, to), (row * p.pitch + x + 1) * p.stride + column, v0,
                      v1);
      }
    };
    put(row_part, y + 1);
    if (y == 0 && row_part > 0) put(row_part - 1, p.rows + 1);
    if (y == tile.rows - 1 && row_part + 1 < p.down) put(row_part + 1, 0);
  }

  // Adds up what the warps that share a product have, in the first of them.
  __device__ void join(Accumulator<kMt, kNt>& d) const {
    float* parts = shared_memory<float>(p.at_parts);  // [warp][value][lane]
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp % p.split;
    float* values = &d[0][0][0];
    constexpr int kValues = kMt * kNt * 4;
    if (part > 0)
#pragma unroll
      for (int i = 0; i < kValues; ++i) parts[(warp * kValues + i) * 32 + lane] = values[i];
    __syncthreads();
    if (part > 0) return;
    for (int other = 1; other < p.split; ++other)
#pragma unroll
      for (int i = 0; i < kValues; ++i) values[i] += parts[((warp + other) * kValues + i) * 32 + lane];
  }

  // A convolution of the own columns, by warps: multiply(y, x, column, first, d) adds the products of k-steps first,
  // first + split, ..; visit(y, x, channel, values of two channels) gets them with the bias. Sums what it returns for
  // all blocks if asked to.
  template <class Multiply, class Visit>
  __device__ void convolve(int bias_slot, bool wants_sums, Multiply multiply, Visit visit) const {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, across = p.columns / (8 * kNt);
    const float* bias = shared_memory<float>(p.at_bias + bias_slot * p.bias_bytes);
    const int items = p.pieces * across, slots = kStageWarps / p.split;
    for (int item = warp / p.split; p.split > 1 || item < items; item += slots) {
      const int piece = item / across, column = item % across * 8 * kNt;
      const int y0 = piece / p.strips * 2 * kMt, x = piece % p.strips * 8 + g;
      const bool has = item < items && y0 < tile.rows;
      Accumulator<kMt, kNt> d;
      clear<kMt, kNt>(d);
      if (has) multiply(y0, x, column, warp % p.split, d);
      if (p.split > 1) join(d);  // one item for each warp then
      if (has && warp % p.split == 0) {
        float sum[kNt][2] = {};
#pragma unroll
        for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const int y = y0 + 2 * mt + r;
            if (y >= tile.rows || x >= tile.columns) continue;
#pragma unroll
            for (int nt = 0; nt < kNt; ++nt) {
              const int c = column + column_of(nt);
              const float2 v = visit(y, x, column_part * p.columns + c, d[mt][nt][2 * r] + bias[c],
                                     d[mt][nt][2 * r + 1] + bias[c + 1]);
              sum[nt][0] += v.x;
              sum[nt][1] += v.y;
            }
          }
        if (wants_sums) send(sum, row_part * p.pieces + piece, column_part * p.columns + column);
      }
      if (p.split > 1) break;
    }
  }
  // Sends a warp's channel sums to every block: the eight groups of lanes that have the same channels take a block
  // each.
  __device__ void send(const float (&sum)[kNt][2], int place, int column) const {
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float v = sum[nt][i];
        for (int d = 4; d < 32; d *= 2) v += __shfl_xor_sync(kAllLanes, v, d);
        const int to = threadIdx.x % 32 / 4;
        if (to < all.blocks) ptx::map_shared(received, to)[(column + column_of(nt) + i) * p.received_pitch + place] = v;
      }
  }

  // `window` multiplies for a 3x3 within a frame, `strided` for the 1x1 and the 3x3 of stride 2 that read the map
  // before.
  __device__ auto window(const T* frame, int conv) const {
    return [this, frame, conv](int y, int x, int column, int first, Accumulator<kMt, kNt>& d) {
      const Weights<T> weights{shared_memory<T>(p.at_weights + conv * p.weight_bytes), p.groups, p.weight_pitch};
      multiply_window<T, kMt, kNt>(frame + (y * p.pitch + x) * p.stride, p.pitch * p.stride, p.stride, weights, column,
                                   first, p.split, d);
    };
  }
  template <int kTaps>
  __device__ auto strided(int at_weights, int groups) const {
    return [this, at_weights, groups](int y, int x, int column, int first, Accumulator<kMt, kNt>& d) {
      const Weights<T> weights{shared_memory<T>(at_weights), groups, p.weight_pitch};
      const int row = p.source_pitch * p.source_stride, cell = p.source_stride;
      multiply_taps<T, kMt, kNt, kTaps>(shared_memory<T>(p.at_source) + 2 * (y * row + x * cell), 2 * row, row, cell,
                                        weights, column, first, p.split, d);
    };
  }
  __device__ auto into(T* frame) const {
    return [this, frame](int y, int x, int channel, float v0, float v1) {
      write(frame, y, x, channel, relu(v0), relu(v1));
      return float2{0, 0};
    };
  }

  __device__ void first_conv() const { convolve(0, false, window(state, 0), into(mid)); }
  __device__ void last_conv() const {
    convolve(1, all.pools, window(mid, 1), [&](int y, int x, int channel, float v0, float v1) {
      const float2 old = load_pair<T>(state, ((y + 1) * p.pitch + x + 1) * p.stride + channel);
      const float2 v{relu(v0 + old.x), relu(v1 + old.y)};
      write(state, y, x, channel, v.x, v.y);
      return v;
    });
  }
  // Computes from the map before: the shortcut always, the unit's first convolution if it runs.
  __device__ void enter(int groups, bool runs) const {
    convolve(2, all.pools && !runs, strided<1>(p.at_shortcut, groups),
             [&](int y, int x, int channel, float v0, float v1) {
               write(state, y, x, channel, v0, v1);
               return float2{v0, v1};
             });
    if (!runs) return;
    __syncthreads();  // the sums that warps share have been added up
    convolve(0, false, strided<9>(p.at_weights, groups), into(mid));
  }
  // The pooled vector of what was written, behind the cluster's barrier.
  __device__ void pool(float* pooled) const {
    for (int c = threadIdx.x; c < channels(); c += kStageThreads) {
      const auto* parts = reinterpret_cast<const float4*>(received + c * p.received_pitch);
      float4 total = {};
#pragma unroll 4
      for (int i = 0; i < p.down * p.pieces; i += 4) {
        const float4 v = parts[i / 4];
        total = {total.x + v.x, total.y + v.y, total.z + v.z, total.w + v.w};
      }
      pooled[c] = (total.x + total.y + total.z + total.w) / p.pixels;
    }
  }
};

}  // namespace dsn::cuda
