// A whole dense block of a sample in one launch: the thread blocks of a cluster, each with a tile of the map, walk the
// layers together. A skipped layer is a branch; behind a layer that ran stands one barrier of the cluster.
#pragma once

#include "cuda/dense_layer.cuh"

namespace dsn::cuda {

// Sends a tile's channel sums, `sums` [warp][columns] added up, to every block of the cluster: received[rank][columns].
__device__ inline void send_sums(const float* sums, int columns, int rank, int blocks, float* received) {
  for (int i = threadIdx.x; i < blocks * columns; i += blockDim.x) {
    const int to = i / columns, c = i % columns;
    float total = 0;
    for (int w = 0; w < kWarps; ++w) total += sums[w * columns + c];
    ptx::map_shared(received, to)[rank * columns + c] = total;
  }
}

// Bottleneck layers of a concatenated block whose columns fill kReduceTiles and kConvTiles of 8.
template <class T, int kReduceTiles, int kConvTiles>
__global__ void __launch_bounds__(kThreads) resident_block_kernel(const __grid_constant__ ResidentBlockParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const Gates& gates = p.layer.pooling.gates;
  const int blocks = p.layer.pooling.blocks, rank = static_cast<int>(blockIdx.x) % blocks;
  const int sample = static_cast<int>(blockIdx.x) / blocks;  // of the whole cluster
  if (sample >= (p.layer.samples.count ? *p.layer.samples.count : p.layer.samples.batch)) return;
  DenseLayerParams q = p.layer;  // of the layer at hand
  const Source& source = p.layer.source;
  const Tile tile(q, rank);
  unsigned* masks = shared_memory<unsigned>(q.at_masks);
  GroupRef* groups = shared_memory<GroupRef>(q.at_groups);
  float* bias = shared_memory<float>(q.at_bias);
  float* sums = shared_memory<float>(q.at_sums);
  T* mid = shared_memory<T>(q.at_mid);
  float* pooled = shared_memory<float>(p.at_pooled);      // [gates.positions] of the live channels, 0 of the others
  float* received = shared_memory<float>(p.at_received);  // [2][blocks][conv_columns]
  const T* state = static_cast<const T*>(source.data) + sample * source.sample_stride;

  Live live{source.first_groups, source.first_channels, 0};
  for (int i = threadIdx.x; i < gates.positions; i += blockDim.x)
    pooled[i] = i < source.first_groups * kGroup
                    ? p.layer.pooling.pooled[static_cast<int64_t>(sample) * gates.positions + i]
                    : 0.f;
  for (int i = threadIdx.x; i < live.groups; i += blockDim.x) groups[i] = {i * kGroup, i};
  for (int i = threadIdx.x; i < (gates.layers + 31) / 32; i += blockDim.x) masks[i] = 0;
  ptx::cluster_sync();  // all blocks have begun: their shared memory may be written

  unsigned long long macs = 0;
  int parity = 0;
#pragma unroll 1
  for (int layer = 0; layer < gates.layers; ++layer) {
    const float score = layer_score(gates, layer, pooled);
    const bool open = layer_opens(gates, sample, layer, score);
    if (rank == 0) {
      if (threadIdx.x == 0) {
        gates.taken[sample * gates.gates + layer] = open;
        gates.score[sample * gates.gates + layer] = score;
      }
      if (gates.kind != GateKind::kNone) macs += gates.first_channels + layer * gates.slice_channels;
    }
    if (!open) continue;

    const ResidentLayer& at = p.layers[layer];
    q.layer = layer;
    q.source.slices = layer;
    q.total_groups = source.first_groups + layer * source.slice_groups;
    q.norm = p.weights + at.norm;
    q.reduce = p.weights + at.reduce;
    q.reduce_bias = reinterpret_cast<const float*>(p.weights + at.reduce_bias);
    q.constants = reinterpret_cast<const float*>(p.weights + at.constants);
    q.conv = p.weights + at.conv;
    const int padding = -live.groups & 3;
    if (static_cast<int>(threadIdx.x) < padding) groups[live.groups + threadIdx.x] = {0, -1};
    const Weights<T> weights = stage_conv(q, shared_memory<T>(q.at_conv));
    sum_constants(q, masks, bias);
    __syncthreads();
    reduce_tile<T, 2, kReduceTiles, true>(q, tile, state, (live.groups + padding) / 4, groups, bias, mid);
    ptx::cp_async_wait<0>();
    __syncthreads();
    convolve_tile<T, 2, kConvTiles, true, 9>(tile, mid, q.mid_stride, weights, q.conv_columns, sums,
                                             SliceWriter<T>(q, tile, sample));
    macs += static_cast<unsigned long long>(tile.pixels()) * q.bottleneck * (live.channels + 9 * q.growth);
    if (layer + 1 == gates.layers) break;  // nobody reads its sums, and the next launch waits for all blocks

    __syncthreads();
    float* here = received + parity * blocks * q.conv_columns;
    send_sums(sums, q.conv_columns, rank, blocks, here);
    parity ^= 1;          // a block that is ahead sends the next sums before a late one has read these
    ptx::cluster_sync();  // slices and sums of all tiles
    const int first = (source.first_groups + layer * source.slice_groups) * kGroup;
    for (int c = threadIdx.x; c < source.slice_groups * kGroup; c += blockDim.x) {
      float total = 0;
      for (int b = 0; b < blocks; ++b) total += here[b * q.conv_columns + c];
      pooled[first + c] = total / p.layer.pooling.pixels;
    }
    if (static_cast<int>(threadIdx.x) < source.slice_groups) {
      const int id = source.first_groups + layer * source.slice_groups + threadIdx.x;
      groups[live.groups + threadIdx.x] = {(first * source.pixels) + static_cast<int>(threadIdx.x) * kGroup, id};
    }
    if (threadIdx.x == 0) masks[layer / 32] |= 1u << (layer % 32);
    live.groups += source.slice_groups;
    live.channels += source.slice_channels;
    __syncthreads();
  }
  if (threadIdx.x == 0 && macs) atomicAdd(p.layer.pooling.macs + sample, macs);
}

}  // namespace dsn::cuda
