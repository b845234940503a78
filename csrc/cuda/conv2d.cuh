// conv2d: a convolution of a map into another, of any window, stride, dilation and number of groups, with what may
// stand around it: BN-ReLU before (and means over 2x2 pixels), bias, sum with the destination and activation after; for
// the samples whose gate opened, of the filters that a sample's mask chose and the input channels that hold data. An
// implicit product, of several groups one for each: a block of threads
// does one tile of one sample and some of the columns; input and weights pass through shared memory, p.depth groups at
// a time, the next one or two passes landing while this one is multiplied. Where there are fewer tiles than the machine
// has room for, a cluster of blocks shares the channels of the input out and adds the sums up. Blocks walk the tiles of
// the samples that run, however many those are; where weights are gathered, tiles of samples with equal masks behind
// one another, and gather once.
#pragma once

#include "cuda/conv2d_stage.cuh"
#include "cuda/unit_gate.cuh"

namespace dsn::cuda {

constexpr int kConvRows = 2;  // of 16 pixels that a warp multiplies

// Groups of the input that are multiplied, in whole k-steps.
__device__ inline int conv_groups(const Conv2dParams& p, const ConvWork& work) {
  return work.in_list ? (work.inputs + 15) / 16 * 4 : p.in_groups;
}

// Shares the k-steps of an item out between the blocks of a cluster.
__device__ inline void share_groups(const Conv2dParams& p, int split, int rank, ConvWork& work) {
  const int groups = conv_groups(p, work), share = (groups / 4 + split - 1) / split * 4;
  work.first_group = min(groups, rank * share);
  work.end_group = min(groups, work.first_group + share);
}

// Sums of products for a warp's pixels and columns. `keeps_weights`: shared memory holds them from the tile before.
template <class T, int kNt>
__device__ inline void convolve(const Conv2dParams& p, const ConvWork& work, int first_row, int column, int tiles,
                                bool keeps_weights, Accumulator<kConvRows, kNt>& d) {
  clear<kConvRows, kNt>(d);
  T* cells = shared_memory<T>(p.at_cells);
  T* staged = shared_memory<T>(p.at_weights);
  const ConvWindow window(p, work.tile);
  SharedOperands<T, kConvRows> operands{cells, {staged, p.depth, p.block_columns * kGroup + kConvPadding}, column};
  const int hop = p.taps == 1 ? 1 : p.stride;
#pragma unroll
  for (int mt = 0; mt < kConvRows; ++mt)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = min(first_row + row_of(mt, r), work.rows() - 1);
      const int own = row % work.tile.pixels(), sample = row / work.tile.pixels();
      operands.offset[mt][r] =
          (sample * window.cells() + own / work.tile.columns * hop * window.columns + own % work.tile.columns * hop) *
          p.cell_stride;
    }
  // Each pass has a slot of shared memory; all but one of them land while a pass is multiplied.
  const int slot_size = p.slot_bytes / static_cast<int>(sizeof(T)), ahead = max(1, p.slots - 1);
  auto stage = [&](int first, int at) {
    if (at >= p.slots * slot_size) at -= p.slots * slot_size;
    const int count = min(p.depth, work.end_group - first);
    if (count > 0) {
      stage_cells<T>(p, work, first, count, cells + at);
      if (!keeps_weights) stage_weights<T>(p, work, first, count, staged + at);
    }
    ptx::cp_async_commit();
  };
  for (int i = 0; i < ahead; ++i) stage(work.first_group + i * p.depth, i * slot_size);
  int at = 0;
  for (int first = work.first_group; first < work.end_group; first += p.depth) {
    const int count = min(p.depth, work.end_group - first);
    if (ahead == 1)
      ptx::cp_async_wait<0>();
    else
      ptx::cp_async_wait<1>();
    __syncthreads();  // the pass is there, and nobody reads the one before it any more
    stage(first + ahead * p.depth, at + ahead * slot_size);
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
        operands.tap_offset += p.dilation * p.cell_stride;
        if (++tap_column < p.kernel_columns) continue;
        tap_column = 0;
        operands.tap_offset += (window.columns - p.kernel_columns) * p.dilation * p.cell_stride;
      }
    };
    if (tiles > 0 && first_row < work.rows()) {
      if constexpr (sizeof(T) == 4) {  // long sums in parts, for float32's rounding would show
        Accumulator<kConvRows, kNt> part;
        clear<kConvRows, kNt>(part);
        multiply_pass(part);
        add<kConvRows, kNt>(d, part);
      } else {
        multiply_pass(d);
      }
    }
    at = at + slot_size == p.slots * slot_size ? 0 : at + slot_size;
  }
  if (work.first_group < work.end_group) return;
  ptx::cp_async_wait<0>();  // the bias, where nothing is multiplied
  __syncthreads();
}

// Adds what the blocks of a cluster summed over their shares of the input, in the order of the blocks; each of them
// gets the sums of some of the warps. Returns whether this warp's are among them.
template <int kNt>
__device__ inline bool gather_sums(const Conv2dParams& p, int rank, Accumulator<kConvRows, kNt>& d) {
  float* sums = shared_memory<float>(p.at_cells);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  auto place = [&](int mt, int nt, int i) { return (((warp * kConvRows + mt) * kNt + nt) * 4 + i) * 32 + lane; };
  __syncthreads();  // nobody reads the last pass any more
#pragma unroll
  for (int mt = 0; mt < kConvRows; ++mt)
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[place(mt, nt, i)] = d[mt][nt][i];
  ptx::cluster_sync();
  const bool own = warp % p.split == rank;
  if (own) {
    clear<kConvRows, kNt>(d);
#pragma unroll 1
    for (int block = 0; block < p.split; ++block) {
      const float* theirs = ptx::map_shared(sums, block);
#pragma unroll
      for (int mt = 0; mt < kConvRows; ++mt)
#pragma unroll
        for (int nt = 0; nt < kNt; ++nt)
#pragma unroll
          for (int i = 0; i < 4; ++i) d[mt][nt][i] += theirs[place(mt, nt, i)];
    }
  }
  ptx::cluster_sync();  // before the sums are overwritten or their block ends
  return own;
}

// What follows the sums of an output; kPlain: at most ReLU.
template <bool kPlain>
__device__ inline float activate_output(const Conv2dParams& p, float v) {
  return kPlain ? relu(v) : activate(p.activation, v);
}

// Stores what filters leave that are off: the activation of what they would have been added to, or else zero.
template <class T, bool kPlain>
__device__ inline void finish_off_filters(const Conv2dParams& p, const ConvWork& work) {
  const uint8_t* mask = p.mask + static_cast<int64_t>(work.sample) * p.mask_stride;
  T* out = static_cast<T*>(p.out.data) + p.out_offset;
  for (int i = threadIdx.x; i < work.rows() * p.out_channels; i += blockDim.x) {
    const int c = i % p.out_channels, row = i / p.out_channels;
    if (mask[c]) continue;
    T& value = out[work.place(p, row) + c];
    value = Numeric<T>::from(p.accumulate ? activate_output<kPlain>(p, static_cast<float>(value)) : 0.f);
  }
}

// Stores zeros behind all outputs, up to a whole group, where no column stands for them.
template <class T>
__device__ inline void pad_outputs(const Conv2dParams& p, const ConvWork& work) {
  T* out = static_cast<T*>(p.out.data) + work.out_channel(p) + p.out_channels;
  for (int i = threadIdx.x; i < work.rows() * p.padding; i += blockDim.x)
    out[work.place(p, i / p.padding) + i % p.padding] = Numeric<T>::from(0.f);
}

// Bias, sum with the destination and activation of a warp's sums, stored where they belong; `sums` [columns of the
// warp] unless it is null: what was stored, over the warp's pixels.
template <class T, int kNt, bool kPlain>
__device__ inline void write_conv(const Conv2dParams& p, const ConvWork& work, int first_row, int column, int tiles,
                                  const Accumulator<kConvRows, kNt>& d, float* sums) {
  using Pair = typename Numeric<T>::Pair;
  constexpr int kAtOnce = 2;  // tiles whose destinations are read in one trip
  T* out = static_cast<T*>(p.out.data) + work.out_channel(p);
  const int activated = p.activated - work.product * p.out_channels;
  const bool scatters = work.out_list && !p.packed;
  const int limit = !work.out_list ? p.limit : p.packed ? (work.filters + kGroup - 1) / kGroup * kGroup : work.filters;
  const bool in_pairs = work.out_list ? p.packed : p.in_pairs;
  const bool reads_old = p.accumulate && in_pairs && !p.old_stride;
  const T* staged = shared_memory<T>(p.at_old) + column;
#pragma unroll
  for (int first = 0; first < kNt; first += kAtOnce) {
    Pair before[kConvRows][2][kAtOnce];
    if (reads_old)
      for_rows<kConvRows>(first_row / 16, work.rows(), [&](int mt, int r, int row) {
        const T* from = out + work.place(p, row);
#pragma unroll
        for (int nt = 0; nt < kAtOnce; ++nt) {
          const int n = work.first_column + column + column_of(first + nt);
          if (first + nt < tiles && n < limit) before[mt][r][nt] = *reinterpret_cast<const Pair*>(from + n);
        }
      });
    ColumnSums<kAtOnce> total;
    for_rows<kConvRows>(first_row / 16, work.rows(), [&](int mt, int r, int row) {
      T* to = out + work.place(p, row);
#pragma unroll
      for (int nt = 0; nt < kAtOnce; ++nt) {
        if (first + nt >= tiles) continue;
        const int local = column + column_of(first + nt), n = work.first_column + local;
        float v[2] = {d[mt][first + nt][2 * r], d[mt][first + nt][2 * r + 1]};
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (work.bias) {
            v[i] += work.bias[local + i];
          } else if (n + i < work.filters) {
            v[i] += p.bias[work.out_list[local + i]];
          }
          if (work.mask && n + i < p.out_channels && !work.mask[n + i]) v[i] = 0;
        }
        if (in_pairs) {
          if (n >= limit) continue;
          const float2 old = p.old_stride ? load_pair<T>(staged, row * p.old_stride + column_of(first + nt))
                             : reads_old  ? Numeric<T>::unpack(before[mt][r][nt])
                                          : float2{0, 0};
          v[0] += old.x, v[1] += old.y;
          if (n < activated) v[0] = activate_output<kPlain>(p, v[0]);
          if (n + 1 < activated) v[1] = activate_output<kPlain>(p, v[1]);
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
            if (n + i < activated) v[i] = activate_output<kPlain>(p, v[i]);
            value = Numeric<T>::from(v[i]);
          }
        }
        total.sum[nt][0] += v[0];
        total.sum[nt][1] += v[1];
      }
    });
    if (sums) total.store(sums + first * 8, tiles - first);
  }
}

// Blocks of a multiprocessor for which registers must suffice.
template <class T, int kNt, bool kPlain>
constexpr int kConvBlocks =
    conv_residency(sizeof(T), kNt) <= kMostGeneralBlocks || kPlain ? conv_residency(sizeof(T), kNt)
                                                                   : kMostGeneralBlocks;

// kPlain: one product, and nothing or ReLU follows it; else blockIdx.y is the product.
template <class T, int kNt, bool kPlain>
__global__ void __launch_bounds__(kThreads, (kConvBlocks<T, kNt, kPlain>))
    conv2d_kernel(const __grid_constant__ Conv2dParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int warp = threadIdx.x / 32, tiles_of_map = p.pooling.tiles, across = p.blocks / tiles_of_map;
  const int product = kPlain ? 0 : static_cast<int>(blockIdx.y);
  const int batch_tiles = p.items / across;
  uint16_t* lists = shared_memory<uint16_t>(p.at_lists);
  float* sums = shared_memory<float>(p.at_sums);
  constexpr int kNothing = -2, kAllWeights = -1;
  int staged_column = 0, staged_lists = kNothing, staged_weights = kNothing;  // of the sample that had them first
  constexpr bool kSplits = kHasClusters && kNt >= kLeastSplitTiles;
  const int split = kSplits ? p.split : 1;
  const int rank = static_cast<int>(blockIdx.x) % split, block = static_cast<int>(blockIdx.x) / split;
  const int stride = static_cast<int>(gridDim.x) / split;
  const int end = p.walk ? min(p.items, (block + 1) * p.walk) : p.items;
  bool began = false;
  for (int item = block * max(p.walk, 1); item < end; item += p.walk ? 1 : stride) {
    if (began) __syncthreads();  // the tile before may still read what is staged now
    began = true;
    const int place = p.walk ? item % batch_tiles / tiles_of_map : item / p.blocks;
    int samples = 1;
    int sample = p.pack > 1 ? pick_samples(p, place * p.pack, &samples)
                 : p.order  ? static_cast<int>(p.order[place])
                            : pick_sample(p.samples, place);
    if (p.order && p.samples.count && sample >= *p.samples.count) sample = -1;
    if (sample < 0 && p.walk) continue;
    if (sample < 0) return;
    const int tile = p.walk ? item % tiles_of_map : item % p.blocks / across;
    const int first_column = (p.walk ? item / batch_tiles : item % across) * p.block_columns;
    ConvWork work{sample,
                  samples,
                  first_column,
                  p.columns - first_column,
                  MapTile(tile, p.tile_rows, p.tile_columns, p.tiles_across, p.out.width, p.out.height),
                  p.in_channels,
                  p.out_channels,
                  nullptr,
                  nullptr,
                  nullptr,
                  p.norm,
                  nullptr,
                  0,
                  0,
                  product};
    if (!kPlain && p.norm) work.norm = static_cast<const T*>(p.norm) + product * p.in_groups * 2 * kGroup;
    if (p.filters.list) work.filters = p.filters.count[static_cast<int64_t>(sample) * p.filters.count_stride];
    if (p.inputs.list) work.inputs = p.inputs.count[static_cast<int64_t>(sample) * p.inputs.count_stride];
    if (p.filters.list && work.filters < nearly_all(p.out_channels))
      work.out_list = lists + p.in_groups * kGroup;
    else if (work.filters < p.out_channels)
      work.mask = p.mask + static_cast<int64_t>(sample) * p.mask_stride;
    if (p.inputs.list && work.inputs < (p.scattered ? p.in_channels : nearly_all(p.in_channels))) work.in_list = lists;
    if (work.out_list) work.columns = (work.filters + 7) / 8 * 8 - first_column;
    if (p.off_look && work.out_list && first_column == 0) finish_off_filters<T, kPlain>(p, work);
    const bool is_last = kPlain || product + 1 == p.products;
    if (p.padding && is_last && first_column == 0 && rank == 0) pad_outputs<T>(p, work);
    work.columns = min(work.columns, p.block_columns);
    if (work.columns <= 0) continue;
    share_groups(p, split, rank, work);
    const int own_weights = !work.gathers() ? kAllWeights : p.alike ? p.alike[sample] : sample;
    if (staged_column != first_column) staged_column = first_column, staged_lists = staged_weights = kNothing;
    if (work.gathers()) {
      if (staged_lists != own_weights) stage_lists<T>(p, work);
      use_lists<T>(p, work);
      staged_lists = own_weights;
    }
    if (p.old_stride) stage_old<T>(p, work);
    if (!work.out_list && !work.bias) {
      stage_bias<T>(p, work);
      work.bias = shared_memory<float>(p.at_bias);
      staged_lists = kNothing;  // the lists' bias lay there
    }
    const int first_row = warp % p.warps_down * kConvRows * 16, column = warp / p.warps_down * kNt * 8;
    int tiles = min(kNt, (work.columns - column) / 8);
    Accumulator<kConvRows, kNt> d;
    convolve<T, kNt>(p, work, first_row, column, tiles, staged_weights == own_weights, d);
    staged_weights = conv_groups(p, work) <= p.depth && split == 1 ? own_weights : kNothing;
    if constexpr (kSplits)
      if (p.split > 1 && !gather_sums<kNt>(p, rank, d)) tiles = 0;
    float* own_sums = p.pooling.pooled ? sums + warp % p.warps_down * p.block_columns + column : nullptr;
    if (tiles > 0) write_conv<T, kNt, kPlain>(p, work, first_row, column, tiles, d, own_sums);
    const int own = max(0, min(work.columns, work.filters - first_column));
    const unsigned long long macs = static_cast<unsigned long long>(work.tile.pixels()) * p.taps * work.inputs * own;
    if (rank == 0 && threadIdx.x > 0 && threadIdx.x < samples)
      atomicAdd(p.pooling.macs + work.sample_at(threadIdx.x), macs);
    const float* pooled =
        pool_tile(p.pooling, sample, tile, sums, p.warps_down, p.block_columns, product * p.out_channels + first_column,
                  is_last ? work.columns : own, rank == 0 ? macs : 0, shared_memory<int>());
    if (pooled) decide_units(p.gates, pooled, sample, p.pooling.macs, sums);
  }
}

}  // namespace dsn::cuda
