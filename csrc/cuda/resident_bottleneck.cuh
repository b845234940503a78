// Pre-activation bottleneck units that follow one another on one map, x += 1x1(3x3(1x1(BN-ReLU(x)))), with ReLU behind
// the first two convolutions, in one launch. A cluster holds a sample's map in its shared memory, a block some of the
// rows, and walks the units; neighbours exchange a row of the 3x3's input per unit, behind the one barrier of the
// cluster. Where masks choose filters, a block gathers the weights of those that are on and writes what they give to
// their own channels, which are zero for the others. A convolution's weights land while the two before it are computed.
#pragma once

#include "cuda/resident_rows.cuh"
#include "cuda/routing.cuh"

namespace dsn::cuda {

template <class T>
struct NormalisedOperands : SharedOperands<T, 1> {
  const T* norm;
  __device__ Quad<T> a(int group, int mt, int r) const {
    const typename Numeric<T>::Norm n{load_quad<T>(norm, group * 2 * kGroup),
                                      load_quad<T>(norm, group * 2 * kGroup + kGroup)};
    return Numeric<T>::normalise(SharedOperands<T, 1>::a(group, mt, r), n);
  }
};

template <class T>
struct BottleneckBlock {
  static constexpr int kNt = kBottleneckTiles;
  const BottleneckParams& p;
  int sample, rank;
  MapTile tile;
  T *state, *inner;  // [pixel][state_stride], [pixel][width_stride]
  int* counts;       // [unit][3]: filters of each convolution that are on
  uint16_t* lists;   // [unit][list_row]: which these are

  __device__ BottleneckBlock(const BottleneckParams& p, int sample, int rank)
      : p(p),
        sample(sample),
        rank(rank),
        tile(rank, p.rows, p.map.width, 1, p.map.width, p.map.height),
        state(shared_memory<T>(p.at_state)),
        inner(shared_memory<T>(p.at_inner)),
        counts(shared_memory<int>(p.at_counts)),
        lists(shared_memory<uint16_t>(p.at_lists)) {}

  template <class U>
  __device__ const U* field(int32_t place) const {
    return reinterpret_cast<const U*>(p.weights + static_cast<int64_t>(place) * 16);
  }
  __device__ int filters(int conv) const { return conv == 2 ? p.channels : p.width; }
  __device__ int chosen(int unit, int conv) const { return counts[unit * 3 + conv]; }
  __device__ uint16_t* list(int unit, int conv) const {
    return lists + unit * p.list_row + conv * ((p.width + kListPiece - 1) / kListPiece * kListPiece);
  }
  // The 3x3's input: units take turns, so that a neighbour which is ahead does not write what is still read.
  __device__ FramedRows<T> mid(int unit) const {
    return {shared_memory<T>(p.at_mid[unit % 2]), rank, p.blocks, p.rows, p.width_stride, tile};
  }
  __device__ void clear_mid(int unit) const {
    clear_cells(shared_memory<T>(p.at_mid[unit % 2]), (p.rows + 2) * tile.pitch(), p.width_stride, p.width_groups);
  }
  __device__ void clear_inner() const { clear_cells(inner, tile.pixels(), p.width_stride, p.width_groups); }

  // Copies the map's rows, and which filters are on, of all units.
  __device__ void load() const {
    fetch_rows<T>(p.map, sample, tile, state, p.state_stride, p.groups);
    for (int i = threadIdx.x; i < p.units * 3; i += kStageThreads) {
      const BottleneckConv& conv = p.unit[i / 3].conv[i % 3];
      counts[i] = conv.list < 0 ? filters(i % 3) : p.counts[static_cast<int64_t>(sample) * p.count_stride + conv.count];
    }
    for (int i = threadIdx.x / 32; i < p.units * 3; i += kStageWarps) {
      const BottleneckConv& conv = p.unit[i / 3].conv[i % 3];
      const uint16_t* from = p.lists + static_cast<int64_t>(sample) * p.list_stride + conv.list;
      uint16_t* to = list(i / 3, i % 3);
      for (int c = threadIdx.x % 32 * kListPiece; c < filters(i % 3); c += 32 * kListPiece)
        if (conv.list >= 0)
          ptx::cp_async<16>(ptx::shared_address(to + c), from + c);
        else
          for (int j = c; j < c + kListPiece; ++j) to[j] = static_cast<uint16_t>(j);
    }
    ptx::cp_async_commit();
    clear_mid(0);
    clear_mid(1);
    ptx::cp_async_wait<0>();
  }

  // Starts to gather weights and bias of the filters that are on, zeros up to whole tiles; nothing behind the last
  // unit.
  __device__ void fetch(int unit, int conv) const {
    if (unit < p.units) {
      const BottleneckUnit& from = p.unit[unit];
      const uint16_t* on = list(unit, conv);
      const int n = chosen(unit, conv), columns = conv == 2 ? p.columns : p.width_columns;
      const int rows = conv == 0 ? p.groups : conv == 1 ? 9 * p.width_groups : p.width_groups;
      const T* weight = field<T>(from.conv[conv].weight);
      const float* bias = field<float>(from.conv[conv].bias);
      T* to = shared_memory<T>(p.at_weights[conv]);
      constexpr int kBytes = kGroup * sizeof(T);
      for (int j = threadIdx.x % 32; j < (n + 7) / 8 * 8; j += 32) {
        const int filter = j < n ? on[j] : 0, warp = threadIdx.x / 32;
        for (int row = warp; row < rows; row += kStageWarps)
          ptx::cp_async<kBytes>(ptx::shared_address(to + row * p.pitch[conv] + j * kGroup),
                                weight + (static_cast<int64_t>(row) * columns + filter) * kGroup, j < n ? kBytes : 0);
        if (warp == 0)
          ptx::cp_async<4>(ptx::shared_address(shared_memory<float>(p.at_bias[conv]) + j), bias + filter,
                           j < n ? 4 : 0);
      }
      constexpr int kPiece = 16 / sizeof(T);
      for (int i = threadIdx.x * kPiece; conv == 0 && i < p.groups * 2 * kGroup; i += kStageThreads * kPiece)
        ptx::cp_async<16>(ptx::shared_address(shared_memory<T>(p.at_norm) + i), field<T>(from.norm) + i);
    }
    ptx::cp_async_commit();
  }

  // Adds up what the `split` warps that share a product have, in the first of them.
  __device__ void join(Accumulator<1, kNt>& d, int split) const {
    float* parts = shared_memory<float>(p.at_parts);  // [warp][value][lane]
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float* values = &d[0][0][0];
    if (warp % split > 0)
#pragma unroll
      for (int i = 0; i < kNt * 4; ++i) parts[(warp * kNt * 4 + i) * 32 + lane] = values[i];
    __syncthreads();
    if (warp % split > 0) return;
    for (int other = 1; other < split; ++other)
#pragma unroll
      for (int i = 0; i < kNt * 4; ++i) values[i] += parts[((warp + other) * kNt * 4 + i) * 32 + lane];
  }

  // Computes the filters that are on and calls visit(pixel, filter, value with its bias) for each. Warps take 16 pixels
  // and kNt tiles of filters each; where there are fewer of these, several share the k-steps of one.
  template <int kTaps, class Operands, class Visit>
  __device__ void convolve(Operands operands, int unit, int conv, Visit visit) const {
    const int warp = threadIdx.x / 32, n = chosen(unit, conv), tiles = (n + 7) / 8, across = (tiles + kNt - 1) / kNt;
    const int items = (tile.pixels() + 15) / 16 * across, steps = operands.weights.groups / 4;
    const uint16_t* on = list(unit, conv);
    const float* bias = shared_memory<float>(p.at_bias[conv]);
    int split = 1;
    while (2 * split * items <= kStageWarps && 2 * split <= kTaps * steps) split *= 2;
    for (int begin = 0; begin < items; begin += kStageWarps / split) {
      const int item = begin + warp / split, m = item / across, first = item % across * kNt;
      const bool has = item < items;
      Accumulator<1, kNt> d;
      clear<1, kNt>(d);
      if (has) {
        operands.column = first * 8;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int pixel = min(m * 16 + row_of(0, r), tile.pixels() - 1);
          const int cell = kTaps == 9 ? pixel / tile.columns * tile.pitch() + pixel % tile.columns : pixel;
          operands.offset[0][r] = cell * (kTaps == 9 || conv == 2 ? p.width_stride : p.state_stride);
        }
        operands.tap = 0, operands.step = warp % split;
#pragma unroll 1
        for (int k = operands.step; k < kTaps * steps; k += split, operands.step += split) {
          while (operands.step >= steps) operands.step -= steps, ++operands.tap;
          operands.tap_offset = kTaps == 9 ? (operands.tap / 3 * tile.pitch() + operands.tap % 3) * p.width_stride : 0;
          multiply<T, false, 1, kNt>(d, operands, tiles - first);
        }
      }
      if (split > 1) join(d, split);  // there is one round then
      if (!has || warp % split > 0) continue;
      for_rows<1>(m, tile.pixels(), [&](int mt, int r, int pixel) {
#pragma unroll
        for (int nt = 0; nt < kNt; ++nt)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int j = first * 8 + column_of(nt) + i;
            if (j < n) visit(pixel, on[j], d[mt][nt][2 * r + i] + bias[j]);
          }
      });
    }
  }
  __device__ Weights<T> weights(int conv, int groups) const {
    return {shared_memory<T>(p.at_weights[conv]), groups, p.pitch[conv]};
  }

  __device__ void reduce(int unit) const {
    const FramedRows<T> to = mid(unit);
    const NormalisedOperands<T> operands{{state, weights(0, p.groups)}, shared_memory<T>(p.at_norm)};
    convolve<1>(operands, unit, 0, [&](int pixel, int filter, float v) { to.write(pixel, filter, relu(v)); });
  }
  __device__ void convolve_mid(int unit) const {
    const SharedOperands<T, 1> operands{shared_memory<T>(p.at_mid[unit % 2]), weights(1, p.width_groups)};
    convolve<9>(operands, unit, 1, [&](int pixel, int filter, float v) {
      inner[pixel * p.width_stride + filter] = Numeric<T>::from(relu(v));
    });
  }
  __device__ void expand(int unit) const {
    const SharedOperands<T, 1> operands{inner, weights(2, p.width_groups)};
    convolve<1>(operands, unit, 2, [&](int pixel, int filter, float v) {
      T& value = state[pixel * p.state_stride + filter];
      value = Numeric<T>::from(static_cast<float>(value) + v);
    });
  }
};

template <class T>
__global__ void __launch_bounds__(kStageThreads, 1)
    resident_bottleneck_kernel(const __grid_constant__ BottleneckParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int sample = pick_sample(p.samples, blockIdx.x / p.blocks), rank = static_cast<int>(blockIdx.x) % p.blocks;
  if (sample < 0) return;  // of the whole cluster
  const BottleneckBlock<T> block(p, sample, rank);
  block.load();
  __syncthreads();  // lists
  block.fetch(0, 0);
  block.fetch(0, 1);
  ptx::cp_async_wait<1>();
  ptx::cluster_sync();  // a neighbour's first row must not meet the zeros of load()
  unsigned long long macs = 0;
#pragma unroll 1
  for (int u = 0; u < p.units; ++u) {
    block.fetch(u, 2);
    block.clear_inner();
    block.reduce(u);
    ptx::cp_async_wait<1>();
    ptx::cluster_sync();
    block.fetch(u + 1, 0);
    block.convolve_mid(u);
    ptx::cp_async_wait<1>();
    __syncthreads();
    block.fetch(u + 1, 1);
    block.clear_mid(u);
    block.expand(u);
    ptx::cp_async_wait<1>();
    __syncthreads();
    const int first = block.chosen(u, 0), conv = block.chosen(u, 1), last = block.chosen(u, 2);
    macs += p.channels * first + conv * (9 * first + last);
  }
  store_rows<T>(p.map, sample, block.tile, block.state, p.state_stride);
  if (threadIdx.x == 0) atomicAdd(p.macs + sample, macs * block.tile.pixels());
}

}  // namespace dsn::cuda
