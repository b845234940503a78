// Residual units of two 3x3 convolutions that follow one another, in one launch: a cluster holds a sample's map in its
// shared memory, a block some of the rows and some of the columns of weights, and walks the units together. Where a
// unit of stride 2 leads to another map, that is shared out anew, and the old one read from global memory once. A
// bypassed unit is a branch: every block decides its gate for itself, from channel sums that all of them have. Behind
// a convolution blocks write their outputs to all that read them and meet at one barrier of the cluster; the weights of
// the next one land meanwhile.
#pragma once

#include "cuda/stage_block.cuh"

namespace dsn::cuda {

// The state of a block that walks the units, kept from one to the next.
struct StageWalk {
  const StageParams& p;
  int rank, sample;
  float *pooled, *hidden;
  bool ran = false;       // some unit of this map ran
  bool entering = false;  // the unit that leads to the next map runs
  unsigned long long macs = 0;

  // Starts to copy a gate's weights.
  __device__ void fetch_gate(const StageUnit& unit) const {
    if (unit.gate >= 0) {
      const UnitGate& gate = p.gates.unit[unit.gate];
      const int outputs = p.gates.kind == GateKind::kRecurrent ? gate::kEmbedding : 1;
      const auto* from = reinterpret_cast<const float*>(p.weights + static_cast<int64_t>(gate.weight) * 16);
      copy_floats(shared_memory<float>(p.at[0].at_embed), from, (gate.bias - gate.weight) * 4 + outputs);
    }
    ptx::cp_async_commit();
  }
  // Decides the gate of a unit that reads a map of so many channels, once its weights have landed; the latest group of
  // copies may be under way.
  __device__ bool opens(const StageUnit& unit, int channels) {
    if (unit.gate < 0) return true;
    ptx::cp_async_wait<1>();
    __syncthreads();
    macs += rank == 0 ? gate_macs(p.gates.kind, channels) : 0;
    const UnitGate& gate = p.gates.unit[unit.gate];
    const Recurrence& from = p.gates.shared;
    const StageCut& at = p.at[0];
    const float *weight = shared_memory<float>(at.at_embed), *shared = shared_memory<float>(at.at_shared);
    const GateWeights weights{weight,
                              weight + (gate.bias - gate.weight) * 4,
                              {shared, shared + (from.hidden - from.input), shared + (from.bias - from.input),
                               shared + (from.projection - from.input), shared + (from.projection_bias - from.input)},
                              shared_memory<GateLimit>(at.at_limits) + unit.gate,
                              channels};
    return decide_unit(p.gates, unit.gate, weights, pooled, hidden, sample, shared_memory<float>(at.at_gate),
                       rank == 0);
  }
};

// The units of map `index`, and the way there from the one before.
template <class T, int kTiles>
__device__ void walk_map(StageWalk& walk, int index) {
  const StageParams& p = walk.p;
  const StageMap& map = p.at[index];
  const StageBlock<T, kTiles> block(p, map, walk.rank);
  const unsigned long long conv_macs =
      walk.rank == 0 ? 9ull * map.channels * map.channels * map.map.width * map.map.height : 0;
  auto fetch_unit = [&](int u) {
    walk.fetch_gate(p.unit[u]);
    block.fetch_conv(p.unit[u], 0, map.groups);
  };
  int u = map.first_unit;
  const int end = u + map.units;
  // Starts to copy what the next unit begins with. If it lies on the next map, that is its gate alone, since a map has
  // places of its own for weights.
  auto fetch_next = [&] {
    if (u + 1 < end)
      fetch_unit(u + 1);
    else if (index + 1 < p.maps)
      walk.fetch_gate(p.unit[end]), ptx::cp_async_commit();
  };
  block.clear_sums();
  block.clear_frame(block.mid);
  if (index == 0) {
    block.fetch_cells(map.map, walk.sample, block.tile.y - 1, -1, map.frame_rows, map.pitch, map.stride, map.groups,
                      block.state);
    fetch_unit(u);
    ptx::cp_async_wait<1>();
    ptx::cluster_sync();  // every block has its frames, and is there to be written to
  } else {
    const StageMap& before = p.at[index - 1];
    const StageUnit& unit = p.unit[u];
    const bool runs = walk.entering;
    block.clear_frame(block.state);
    block.fetch_cells(before.map, walk.sample, 2 * block.tile.y - 1, -1, map.source_rows, map.source_pitch,
                      map.source_stride, before.groups, shared_memory<T>(map.at_source));
    block.fetch_shortcut(before.groups);
    if (runs) block.fetch_conv(unit, 0, before.groups);
    if (runs) block.fetch_conv(unit, 1, map.groups);
    ptx::cp_async_wait<0>();
    ptx::cluster_sync();
    block.enter(before.groups, runs);
    ptx::cluster_sync();
    fetch_next();
    if (runs) {
      block.last_conv();
      ptx::cluster_sync();
    }
    if (p.pools) block.pool(walk.pooled);
    walk.macs += conv_macs / map.channels * before.channels / 9 * (runs ? 10 : 1) + (runs ? conv_macs : 0);
    walk.ran = true;
    ++u;
  }
#pragma unroll 1
  for (; u < end; ++u) {
    const StageUnit& unit = p.unit[u];
    if (!walk.opens(unit, map.channels)) {
      ptx::cp_async_wait<0>();  // what follows lands in the same place
      fetch_next();
      continue;
    }
    walk.ran = true;
    walk.macs += 2 * conv_macs;
    block.fetch_conv(unit, 1, map.groups);
    ptx::cp_async_wait<1>();
    __syncthreads();
    block.first_conv();
    ptx::cp_async_wait<0>();
    ptx::cluster_sync();
    fetch_next();
    block.last_conv();
    ptx::cluster_sync();
    if (p.pools) block.pool(walk.pooled);
  }
  if (walk.ran) block.store(walk.sample);
  if (index + 1 == p.maps) return;
  walk.entering = walk.opens(p.unit[end], map.channels);
  ptx::cp_async_wait<0>();
  ptx::cluster_sync();  // all of the map is stored, and its frames are read no more
}

template <class T>
__global__ void __launch_bounds__(kStageThreads, 1) resident_stage_kernel(const __grid_constant__ StageParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int sample = pick_sample(p.samples, blockIdx.x / p.blocks);
  if (sample < 0) return;  // of the whole cluster
  const StageCut& at = p.at[0];
  StageWalk walk{p, static_cast<int>(blockIdx.x) % p.blocks, sample, shared_memory<float>(at.at_pooled),
                 shared_memory<float>(at.at_hidden)};
  float* kept_hidden = p.gates.hidden ? p.gates.hidden + static_cast<int64_t>(sample) * kHiddenState : nullptr;
  const int positions = p.at[0].map.channels;
  for (int i = threadIdx.x; i < positions && p.own_gates && p.first_pooled; i += kStageThreads)
    walk.pooled[i] = p.first_pooled[static_cast<int64_t>(sample) * positions + i];
  for (int i = threadIdx.x; i < kHiddenState && kept_hidden; i += kStageThreads) walk.hidden[i] = kept_hidden[i];
  if (kept_hidden && p.own_gates) {
    const Recurrence& from = p.gates.shared;
    copy_floats(shared_memory<float>(at.at_shared), from.input,
                static_cast<int>(from.projection_bias + 1 - from.input));
  }
  for (int i = threadIdx.x; i < p.own_gates; i += kStageThreads)
    shared_memory<GateLimit>(at.at_limits)[i] = limit_of(p.gates, p.gates.unit[i].gate, sample);
#pragma unroll 1
  for (int m = 0; m < p.maps; ++m) {
    if (p.at[m].tiles == 1)
      walk_map<T, 1>(walk, m);
    else
      walk_map<T, 2>(walk, m);
  }
  ptx::cp_async_wait<0>();
  __syncthreads();
  if (walk.rank != 0) return;
  // The first block leaves what later launches begin with, and decides the gates behind the run, which read the last
  // map.
  const StageMap& last = p.at[p.maps - 1];
  for (int i = threadIdx.x; i < last.map.channels && walk.ran && p.pooled; i += kStageThreads)
    p.pooled[static_cast<int64_t>(sample) * last.map.channels + i] = walk.pooled[i];
  const int behind =
      decide_units(p.gates, p.own_gates, walk.pooled, walk.hidden, sample, shared_memory<float>(at.at_gate));
  for (int i = threadIdx.x; i < kHiddenState && kept_hidden && p.own_gates + behind > 0; i += kStageThreads)
    kept_hidden[i] = walk.hidden[i];
  if (threadIdx.x == 0)
    atomicAdd(p.macs + sample,
              walk.macs + static_cast<unsigned long long>(behind) * gate_macs(p.gates.kind, p.gates.channels));
}

}  // namespace dsn::cuda
