// One gated layer of a dense block for the samples whose gate opened: BN-ReLU-1x1-BN-ReLU-3x3, plain BN-ReLU-3x3, or
// the residual unit with a second 1x1. A block of threads does one tile of one sample from the state to the state; what
// is between the convolutions stays in its shared memory.
#pragma once

#include "cuda/routing.cuh"
#include "cuda/tile.cuh"

namespace dsn::cuda {

// A tile and, around it, the part of the 3x3's halo that lies inside the map.
struct Tile : MapTile {
  int top, left, halo_rows, halo_columns;
  __device__ Tile(const DenseLayerParams& p, int index)
      : MapTile(index, p.tile_rows, p.tile_columns, p.tiles_across, p.source.width, p.source.height) {
    top = max(y - 1, 0);
    left = max(x - 1, 0);
    halo_rows = min(y + rows + 1, p.source.height) - top;
    halo_columns = min(x + columns + 1, p.source.width) - left;
  }
  __device__ int halo_pixels() const { return halo_rows * halo_columns; }
};

// Operands of the first 1x1: the state, normalised as it is read, and its weights.
template <class T, int kMt>
struct ReduceOperands {
  const Source& source;
  const T* state;  // of the sample
  const GroupRef* groups;
  const typename Numeric<T>::Norm* norm;
  Weights<T> weights;
  int column;
  int step;
  int pixel[kMt][2];

  struct Group {
    int id, stride;
    const T* data;
    typename Numeric<T>::Norm norm;
  };
  __device__ Group group(int slot) const {
    const GroupRef ref = groups[step * 4 + slot];
    Group group{ref.id, pixel_stride(source, ref.id), state + ref.offset, {}};
    if (ref.id >= 0) group.norm = norm[ref.id];
    return group;
  }
  __device__ Quad<T> a(const Group& group, int mt, int r) const {
    if (group.id < 0) return {};
    return Numeric<T>::normalise(load_quad<T>(group.data, static_cast<int64_t>(pixel[mt][r]) * group.stride),
                                 group.norm);
  }
  __device__ Quad<T> b(const Group& group, int n) const {
    if (group.id < 0) return {};
    return weights.load(0, group.id, column + n);
  }
};

// As SharedOperands, but the cells hold the live groups alone; `groups` says which, to find their weights.
template <class T, int kMt>
struct GatheredOperands {
  const T* cells;
  Weights<T> weights;
  const GroupRef* groups;
  int column;
  int tap, tap_offset;
  int step;
  int offset[kMt][2];

  struct Group {
    int place, id;
  };
  __device__ Group group(int slot) const { return {(step * 4 + slot) * kGroup, groups[step * 4 + slot].id}; }
  __device__ Quad<T> a(const Group& group, int mt, int r) const {
    return load_quad<T>(cells, offset[mt][r] + tap_offset + group.place);
  }
  __device__ Quad<T> b(const Group& group, int n) const {
    if (group.id < 0) return {};
    return weights.load(tap, group.id, column + n);
  }
};

// BN-ReLU-1x1-BN-ReLU of tile and halo into the 3x3's input, a zero frame around it where the map ends.
template <class T, int kMt, int kNt, bool kExact>
__device__ inline void reduce_tile(const DenseLayerParams& p, const Tile& tile, const T* state, int steps,
                                   const GroupRef* groups, const float* bias, T* mid) {
  const int width = p.source.width, height = p.source.height;
  const int quads = p.reduce_columns / kGroup;
  for (int i = threadIdx.x; i < tile.cells() * quads; i += blockDim.x) {
    const int cell = i / quads, y = tile.y - 1 + cell / tile.pitch(), x = tile.x - 1 + cell % tile.pitch();
    if (y < 0 || y >= height || x < 0 || x >= width) store_quad<T>(mid, cell * p.mid_stride + i % quads * kGroup, {});
  }
  ReduceOperands<T, kMt> operands{p.source,
                                  state,
                                  groups,
                                  static_cast<const typename Numeric<T>::Norm*>(p.norm),
                                  {static_cast<const T*>(p.reduce), p.total_groups, p.reduce_columns * kGroup}};
  const int rows = tile.halo_pixels(), tiles = p.reduce_columns / 8;
  for (int first = 0; first < tiles; first += kNt) {
    operands.column = first * 8;
    for (int m = threadIdx.x / 32 * kMt; m * 16 < rows; m += kWarps * kMt) {
#pragma unroll
      for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const int row = min(m * 16 + row_of(mt, r), rows - 1);
          operands.pixel[mt][r] = (tile.top + row / tile.halo_columns) * width + tile.left + row % tile.halo_columns;
        }
      Accumulator<kMt, kNt> d;
      clear<kMt, kNt>(d);
#pragma unroll(kUnrolled<T, 2>)
      for (operands.step = 0; operands.step < steps; ++operands.step)
        multiply<T, kExact, kMt, kNt>(d, operands, tiles - first);
      for_rows<kMt>(m, rows, [&](int mt, int r, int row) {
        const int y = tile.top - tile.y + 1 + row / tile.halo_columns;
        const int x = tile.left - tile.x + 1 + row % tile.halo_columns;
        const int cell = (y * tile.pitch() + x) * p.mid_stride + first * 8;
#pragma unroll
        for (int nt = 0; nt < kNt; ++nt) {
          if (!kExact && nt >= tiles - first) continue;
          const int n = column_of(nt);
          store_pair<T>(mid, cell + n, relu(d[mt][nt][2 * r] + bias[first * 8 + n]),
                        relu(d[mt][nt][2 * r + 1] + bias[first * 8 + n + 1]));
        }
      });
    }
  }
}

// Sums the bottleneck's bias: its batch norm's shift, and the constants that stand for the skipped slices.
__device__ inline void sum_constants(const DenseLayerParams& p, const unsigned* masks, float* bias) {
  for (int n = threadIdx.x; n < p.reduce_columns; n += blockDim.x) {
    float v = p.reduce_bias[n];
    if (p.source.slice_groups)
      for (int s = 0; s < p.source.slices; ++s)
        if (!slice_is_live(masks, s)) v += p.constants[s * p.reduce_columns + n];
    bias[n] = v;
  }
}

// Writes a layer's slice and returns what it wrote, before rounding.
template <class T>
struct SliceWriter {
  T* slice;  // of the sample
  int width, channels, x, y, tile_columns;
  __device__ SliceWriter(const DenseLayerParams& p, const Tile& tile, int sample)
      : width(p.source.width),
        channels(p.source.slice_groups * kGroup),
        x(tile.x),
        y(tile.y),
        tile_columns(tile.columns) {
    const int group = p.source.first_groups + p.layer * p.source.slice_groups;
    slice = static_cast<T*>(p.out) + sample * p.source.sample_stride +
            static_cast<int64_t>(group) * kGroup * p.source.pixels;
  }
  __device__ float2 operator()(int row, int column, float v0, float v1) const {
    const int pixel = (y + row / tile_columns) * width + x + row % tile_columns;
    if (column < channels) store_pair<T>(slice, static_cast<int64_t>(pixel) * channels + column, v0, v1);
    return {v0, v1};
  }
};

// Starts to copy the 3x3's weights into shared memory, a group's row kConvPadding further than it is long: so the four
// groups that a warp loads at once lie in different banks. They land while the 1x1 is computed.
template <class T>
__device__ inline Weights<T> stage_conv(const DenseLayerParams& p, T* staged) {
  constexpr int kPiece = 16 / sizeof(T);
  const int groups = p.reduce_columns / kGroup, row = p.conv_columns * kGroup, pitch = row + kConvPadding;
  for (int i = threadIdx.x; i < 9 * groups * row / kPiece; i += blockDim.x) {
    const int at = i * kPiece;
    ptx::cp_async<16>(ptx::shared_address(staged + at / row * pitch + at % row), static_cast<const T*>(p.conv) + at);
  }
  ptx::cp_async_commit();
  return {staged, groups, pitch};
}

// How every kernel of a layer begins: it finds its sample, the live groups and its tile.
template <class T>
struct LayerBlock {
  const DenseLayerParams& p;
  unsigned* masks;
  GroupRef* groups;
  float *bias, *sums;
  T* mid;
  int sample, tile_index;
  Live live;

  __device__ explicit LayerBlock(const DenseLayerParams& p) : p(p) {}
  // Returns whether there is work for this block.
  __device__ bool begin() {
    masks = shared_memory<unsigned>(p.at_masks);
    groups = shared_memory<GroupRef>(p.at_groups);
    bias = shared_memory<float>(p.at_bias);
    sums = shared_memory<float>(p.at_sums);
    mid = shared_memory<T>(p.at_mid);
    if (!begin_block(p.samples, p.source, p.pooling.blocks, groups, masks)) return false;
    sample = shared_memory<BlockHeader>()->sample;
    live = shared_memory<BlockHeader>()->live;
    tile_index = blockIdx.x % p.pooling.blocks;
    return true;
  }
  __device__ void clear_sums(int columns) const {
    for (int i = threadIdx.x; i < kWarps * columns; i += blockDim.x) sums[i] = 0;
  }
  __device__ void end(int columns, unsigned long long macs) const {
    finish(p.pooling, sample, tile_index, sums, kWarps, columns, 0, columns, macs,
           shared_memory<BlockHeader>()->scratch);
  }
};

// kExact: the bottleneck and the growth rate fill kReduceTiles and kConvTiles of 8 channels, and the 3x3's weights fit
// shared memory.
template <class T, int kReduceTiles, int kConvTiles, bool kExact>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? kLeastBlocks : 0)
    bottleneck_layer_kernel(const __grid_constant__ DenseLayerParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  LayerBlock<T> block(p);
  if (!block.begin()) return;
  const int sample = block.sample;
  const Live& live = block.live;
  const Tile tile(p, block.tile_index);
  Weights<T> weights{static_cast<const T*>(p.conv), p.reduce_columns / kGroup, p.conv_columns * kGroup};
  if constexpr (kExact) weights = stage_conv(p, shared_memory<T>(p.at_conv));
  sum_constants(p, block.masks, block.bias);
  block.clear_sums(p.conv_columns);
  __syncthreads();
  const T* state = static_cast<const T*>(p.source.data) + sample * p.source.sample_stride;
  reduce_tile<T, 2, kReduceTiles, kExact>(p, tile, state, live.groups / 4, block.groups, block.bias, block.mid);
  if constexpr (kExact) ptx::cp_async_wait<0>();
  __syncthreads();
  convolve_tile<T, 2, kConvTiles, kExact, 9>(tile, block.mid, p.mid_stride, weights, p.conv_columns, block.sums,
                                             SliceWriter<T>(p, tile, sample));
  const unsigned long long macs =
      static_cast<unsigned long long>(tile.pixels()) * p.bottleneck * (live.channels + 9 * p.growth);
  block.end(p.conv_columns, macs);
}

// A residual unit. The state has two copies: a neighbour may still read the old one while a tile writes the new one.
template <class T, int kTiles>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? kLeastBlocks : kLeastWideBlocks)
    residual_layer_kernel(const __grid_constant__ DenseLayerParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  LayerBlock<T> block(p);
  if (!block.begin()) return;
  const int sample = block.sample;
  const Live& live = block.live;
  const Tile tile(p, block.tile_index);
  T* wide = shared_memory<T>(p.at_wide);

  sum_constants(p, block.masks, block.bias);
  block.clear_sums(p.expand_columns);
  __syncthreads();
  const T* before = static_cast<const T*>(p.source.data) + state_offset(p.source, sample, live.taken);
  T* after = static_cast<T*>(p.out) + state_offset(p.source, sample, live.taken + 1);
  reduce_tile<T, 1, kTiles, false>(p, tile, before, live.groups / 4, block.groups, block.bias, block.mid);
  __syncthreads();
  const Weights<T> conv{static_cast<const T*>(p.conv), p.reduce_columns / kGroup, p.conv_columns * kGroup};
  convolve_tile<T, 1, kTiles, false, 9, kUnrolled<T, 3>>(
      tile, block.mid, p.mid_stride, conv, p.conv_columns, nullptr, [&](int row, int n, float v0, float v1) {
        store_pair<T>(wide, row * p.wide_stride + n, relu(v0 + p.conv_bias[n]), relu(v1 + p.conv_bias[n + 1]));
        return float2{0, 0};
      });
  __syncthreads();
  const Weights<T> expand{static_cast<const T*>(p.expand), p.conv_columns / kGroup, p.expand_columns * kGroup};
  const int channels = p.source.first_groups * kGroup;
  convolve_tile<T, 1, kTiles, false, 1, kUnrolled<T, 3>>(
      tile, wide, p.wide_stride, expand, p.expand_columns, block.sums, [&](int row, int n, float v0, float v1) {
        if (n >= channels) return float2{0, 0};
        const int pixel = (tile.y + row / tile.columns) * p.source.width + tile.x + row % tile.columns;
        const int64_t at = static_cast<int64_t>(pixel) * channels + n;
        const float2 old = load_pair<T>(before, at);
        store_pair<T>(after, at, old.x + v0, old.y + v1);
        return float2{old.x + v0, old.y + v1};
      });
  const unsigned long long macs =
      static_cast<unsigned long long>(tile.pixels()) * p.bottleneck * (2 * live.channels + 9 * p.bottleneck);
  block.end(p.expand_columns, macs);
}

// Bits that say which of a pixel's neighbours above, below, left and right lie outside of the map.
__device__ inline int border_kind(const Source& map, int y, int x) {
  return (y == 0) | (y == map.height - 1) << 1 | (x == 0) << 2 | (x == map.width - 1) << 3;
}

// Sums what the skipped slices give to a plain 3x3. They are constants inside the map and zero outside, so the sum
// depends on which taps of a pixel lie inside. borders[kind][column]; `taps` [9][column] is scratch.
__device__ inline void sum_borders(const DenseLayerParams& p, const unsigned* masks, float* borders, float* taps) {
  for (int i = threadIdx.x; i < 9 * p.conv_columns; i += blockDim.x) {
    float v = 0;
    for (int s = 0; s < p.source.slices; ++s)
      if (!slice_is_live(masks, s)) v += p.constants[s * 9 * p.conv_columns + i];
    taps[i] = v;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < 16 * p.conv_columns; i += blockDim.x) {
    const int kind = i / p.conv_columns, n = i % p.conv_columns;
    float v = 0;
    for (int tap = 0; tap < 9; ++tap) {
      const int dy = tap / 3, dx = tap % 3;
      const bool outside =
          (dy == 0 && kind & 1) || (dy == 2 && kind & 2) || (dx == 0 && kind & 4) || (dx == 2 && kind & 8);
      if (!outside) v += taps[tap * p.conv_columns + n];
    }
    borders[i] = v;
  }
}

// A tile has at most kWarps * kMt * 16 pixels: a warp keeps its sums while the live groups pass through shared memory,
// p.depth at a time.
constexpr int kPlainTiles = 2;  // of 16 pixels and of 8 channels
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kPlainFloatSteps = 1;  // two spill there
#else
constexpr int kPlainFloatSteps = 2;
#endif
template <class T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    plain_layer_kernel(const __grid_constant__ DenseLayerParams p) {
  constexpr int kMt = kPlainTiles, kNt = kPlainTiles;
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  LayerBlock<T> block(p);
  if (!block.begin()) return;
  const int sample = block.sample;
  const Live& live = block.live;
  const Tile tile(p, block.tile_index);
  float* borders = block.bias;
  T* mid = block.mid;
  const int warp = threadIdx.x / 32, rows = tile.pixels(), first_tile = warp * kMt;
  const bool skipped = live.taken < p.source.slices;

  block.clear_sums(p.conv_columns);
  if (skipped) sum_borders(p, block.masks, borders, borders + 16 * p.conv_columns);
  const T* state = static_cast<const T*>(p.source.data) + sample * p.source.sample_stride;
  const auto* norm = static_cast<const typename Numeric<T>::Norm*>(p.norm);
  const SliceWriter<T> write(p, tile, sample);
  GatheredOperands<T, kMt> operands{mid, {static_cast<const T*>(p.conv), p.total_groups, p.conv_columns * kGroup}};
#pragma unroll
  for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = min(first_tile * 16 + row_of(mt, r), rows - 1);
      operands.offset[mt][r] = (row / tile.columns * tile.pitch() + row % tile.columns) * p.mid_stride;
    }
  for (int first = 0; first < p.conv_columns / 8; first += kNt) {
    operands.column = first * 8;
    Accumulator<kMt, kNt> d;
    clear<kMt, kNt>(d);
    for (int pass = 0; pass < live.groups; pass += p.depth) {
      const int count = min(p.depth, live.groups - pass);
      __syncthreads();
      for (int i = threadIdx.x; i < tile.cells() * count; i += blockDim.x) {
        const int cell = i / count, y = tile.y - 1 + cell / tile.pitch(), x = tile.x - 1 + cell % tile.pitch();
        const GroupRef ref = block.groups[pass + i % count];
        Quad<T> v = {};
        if (ref.id >= 0 && y >= 0 && y < p.source.height && x >= 0 && x < p.source.width) {
          const int64_t pixel = y * p.source.width + x;
          v = Numeric<T>::normalise(load_quad<T>(state + ref.offset, pixel * pixel_stride(p.source, ref.id)),
                                    norm[ref.id]);
        }
        store_quad<T>(mid, cell * p.mid_stride + i % count * kGroup, v);
      }
      __syncthreads();
      if (first_tile * 16 >= rows) continue;
      operands.groups = block.groups + pass;
#pragma unroll 1
      for (operands.tap = 0; operands.tap < 9; ++operands.tap) {
        operands.tap_offset = (operands.tap / 3 * tile.pitch() + operands.tap % 3) * p.mid_stride;
#pragma unroll(kUnrolled<T, 3, kPlainFloatSteps>)
        for (operands.step = 0; operands.step < count / 4; ++operands.step)
          multiply<T, true, kMt, kNt>(d, operands, kNt);
      }
    }
    ColumnSums<kNt> total;
    for_rows<kMt>(first_tile, rows, [&](int mt, int r, int row) {
      const int kind = border_kind(p.source, tile.y + row / tile.columns, tile.x + row % tile.columns);
#pragma unroll
      for (int nt = 0; nt < kNt; ++nt) {
        const int n = first * 8 + column_of(nt);
        float v0 = d[mt][nt][2 * r], v1 = d[mt][nt][2 * r + 1];
        if (skipped) v0 += borders[kind * p.conv_columns + n], v1 += borders[kind * p.conv_columns + n + 1];
        write(row, n, v0, v1);
        total.sum[nt][0] += v0;
        total.sum[nt][1] += v1;
      }
    });
    total.store(block.sums + warp * p.conv_columns + first * 8, kNt);
  }
  const unsigned long long macs = static_cast<unsigned long long>(rows) * 9 * live.channels * p.growth;
  block.end(p.conv_columns, macs);
}

}  // namespace dsn::cuda
