// gradual_layer: the update units of a gradually updated layer, x_c += G(x) for one segment c of the channels after the
// other, each a 1x1, a 3x3 and a 1x1 with an optional 1x1 shortcut. A cluster holds a sample's state in its shared
// memory, a block some of the rows, from the first segment to the last; neighbours exchange a row of the 3x3's input
// per segment.
#pragma once

#include "cuda/resident_rows.cuh"
#include "cuda/routing.cuh"

namespace dsn::cuda {

constexpr int kGradualTiles = 6;  // of 8 columns that a warp multiplies

// Adds the bias of two columns and takes the ReLU.
__device__ inline float2 activate(float v0, float v1, const float* bias, int column) {
  return {relu(v0 + bias[column]), relu(v1 + bias[column + 1])};
}

template <class T>
struct GradualBlock {
  const GradualParams& p;
  MapTile tile;
  T *state, *inner;   // [pixel][state_stride], [pixel][width_stride]
  FramedRows<T> mid;  // [cell][width_stride]
  float* add;         // [pixel][add_stride]: what the shortcut gives

  __device__ GradualBlock(const GradualParams& p, int rank)
      : p(p),
        tile(rank, p.rows, p.map.width, 1, p.map.width, p.map.height),
        state(shared_memory<T>(p.at_state)),
        inner(shared_memory<T>(p.at_inner)),
        mid(shared_memory<T>(p.at_mid), rank, p.blocks, p.rows, p.width_stride, tile),
        add(shared_memory<float>(p.at_add)) {}

  // Copies the state in; clears what the segments leave out.
  __device__ void load(int sample) const {
    fetch_rows<T>(p.map, sample, tile, state, p.state_stride, p.groups);
    ptx::cp_async_commit();
    const int groups = p.width_channels / kGroup;
    clear_cells(mid.cells, (p.rows + 2) * tile.pitch(), p.width_stride, groups);
    clear_cells(inner, tile.pixels(), p.width_stride, groups);
    ptx::cp_async_wait<0>();
  }

  template <class U>
  __device__ const U* field(int32_t place) const {
    return reinterpret_cast<const U*>(p.weights + static_cast<int64_t>(place) * 16);
  }
  template <int kTaps, class Visit>
  __device__ void convolve(const T* cells, int stride, int32_t weight, int groups, int columns, Visit visit) const {
    convolve_tile<T, 1, kGradualTiles, false, kTaps>(
        tile, cells, stride, Weights<T>{field<T>(weight), groups, columns * kGroup}, columns, nullptr, visit);
  }

  __device__ static int padded(int channels, int multiple) { return (channels + multiple - 1) / multiple * multiple; }

  // Computes all of a segment that reads the state. Only when the whole cluster has done so may the state change.
  __device__ void read_state(const GradualSegment& s) const {
    const int outputs = s.width + (s.shortcut ? s.size : 0);
    const float* bias = field<float>(s.first_bias);
    convolve<1>(state, p.state_stride, s.first, p.groups, padded(outputs, 16),
                [&](int row, int column, float v0, float v1) {
                  const float v[2] = {v0 + bias[column], v1 + bias[column + 1]};
#pragma unroll
                  for (int i = 0; i < 2; ++i) {
                    const int c = column + i;
                    if (c < s.width)
                      mid.write(row, c, relu(v[i]));
                    else if (c < outputs)
                      add[row * p.add_stride + c - s.width] = v[i];
                  }
                  return float2{0, 0};
                });
  }
  __device__ void convolve_mid(const GradualSegment& s) const {
    const float* bias = field<float>(s.conv_bias);
    const int groups = padded(s.width, 16) / kGroup;
    convolve<9>(mid.cells, p.width_stride, s.conv, groups, padded(s.width, 16),
                [&](int row, int column, float v0, float v1) {
                  const float2 v = activate(v0, v1, bias, column);
                  store_pair<T>(inner, row * p.width_stride + column, v.x, v.y);
                  return float2{0, 0};
                });
  }
  __device__ void update_state(const GradualSegment& s) const {
    const float* bias = field<float>(s.last_bias);
    const int groups = padded(s.width, 16) / kGroup;
    convolve<1>(inner, p.width_stride, s.last, groups, padded(s.size, 16),
                [&](int row, int column, float v0, float v1) {
                  const float v[2] = {v0, v1};
#pragma unroll
                  for (int i = 0; i < 2; ++i) {
                    const int c = column + i;
                    if (c >= s.size) continue;
                    T& value = state[row * p.state_stride + s.channel + c];
                    const float shortcut = s.shortcut ? add[row * p.add_stride + c] : 0.f;
                    value = Numeric<T>::from(static_cast<float>(value) + (shortcut + v[i] + bias[c]));
                  }
                  return float2{0, 0};
                });
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    gradual_layer_kernel(const __grid_constant__ GradualParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int sample = pick_sample(p.samples, blockIdx.x / p.blocks);
  if (sample < 0) return;
  const GradualBlock<T> block(p, blockIdx.x % p.blocks);
  block.load(sample);
  ptx::cluster_sync();  // a neighbour's first row must not meet the zeros of load()
  unsigned long long macs = 0;
  for (int i = 0; i < p.segments; ++i) {
    const GradualSegment& s = p.segment[i];
    if (i > 0) ptx::cluster_wait();  // neighbours read their frames no more
    block.read_state(s);
    ptx::cluster_sync();
    block.convolve_mid(s);
    ptx::cluster_arrive();
    __syncthreads();
    block.update_state(s);
    __syncthreads();
    const int outputs = s.width + (s.shortcut ? s.size : 0);
    macs += p.channels * outputs + 9 * s.width * s.width + s.width * s.size;
  }
  ptx::cluster_wait();
  store_rows<T>(p.map, sample, block.tile, block.state, p.state_stride);
  if (threadIdx.x == 0) atomicAdd(p.macs + sample, macs * block.tile.pixels());
}

}  // namespace dsn::cuda
