// gate, linear: what is computed from a map's pooled vector. Gates are decided by the last block that wrote the map,
// or, where that cannot be, by a kernel of their own, a block per sample.
#pragma once

#include "cuda/routing.cuh"

namespace dsn::cuda {

constexpr int kGateThreads = 128;

__device__ inline float warp_dot(const float* a, const float* b, int n) {
  float z = 0;
  for (int c = threadIdx.x % 32; c < n; c += 32) z = fmaf(a[c], b[c], z);
  return warp_sum(z);
}

// One step of the LSTM that all gates of a network share, from the embedded input, and the logit it gives to thread 0.
// The whole block calls it; `scratch` is shared memory of 5 kEmbedding floats.
__device__ inline float recur(const UnitGates& g, bool first, int sample, const float* embedded, float* scratch) {
  constexpr int n = gate::kEmbedding;
  float* state = g.hidden + static_cast<int64_t>(sample) * 2 * n;  // hidden, cell
  float *pre = scratch, *hidden = scratch + 4 * n;
  const int i = threadIdx.x;
  if (i < n) hidden[i] = first ? 0.f : state[i];
  __syncthreads();
  if (i < 4 * n) {
    float z = g.shared.bias[i];
    for (int k = 0; k < n; ++k) z = fmaf(g.shared.input[i * n + k], embedded[k], z);
    for (int k = 0; k < n; ++k) z = fmaf(g.shared.hidden[i * n + k], hidden[k], z);
    pre[i] = z;
  }
  __syncthreads();
  if (i < n) {
    const float keep = gate_score(GateKind::kSoft, pre[n + i]), take = gate_score(GateKind::kSoft, pre[i]);
    const float cell = (first ? 0.f : keep * state[n + i]) + take * tanhf(pre[2 * n + i]);
    hidden[i] = gate_score(GateKind::kSoft, pre[3 * n + i]) * tanhf(cell);
    state[i] = hidden[i];
    state[n + i] = cell;
  }
  __syncthreads();
  float z = *g.shared.projection_bias;
  if (i == 0)
    for (int k = 0; k < n; ++k) z = fmaf(g.shared.projection[k], hidden[k], z);
  return z;
}
constexpr int kGateBytes = 6 * gate::kEmbedding * 4;  // of shared memory

// Decides a sample's gates in order, up to the first that opens. The whole block calls it, behind a barrier after
// `pooled` was written; `scratch` is kGateBytes of shared memory.
__device__ inline void decide_units(const UnitGates& g, const float* pooled, int sample, unsigned long long* macs,
                                    float* scratch) {
  const bool recurrent = g.kind == GateKind::kRecurrent;
  const int outputs = recurrent ? gate::kEmbedding : 1;
  const int64_t row = sample * g.gates;
  int decided = 0;
  for (; decided < g.count; ++decided) {
    const UnitGate& unit = g.unit[decided];
    if (unit.unless >= 0 && g.taken[row + unit.unless]) break;
    const auto* weight = reinterpret_cast<const float*>(g.weights + static_cast<int64_t>(unit.weight) * 16);
    const auto* bias = reinterpret_cast<const float*>(g.weights + static_cast<int64_t>(unit.bias) * 16);
    for (int r = threadIdx.x / 32; r < outputs; r += blockDim.x / 32) {
      const float dot = warp_dot(weight + r * g.channels, pooled, g.channels);
      if (threadIdx.x % 32 == 0) scratch[r] = dot + bias[r];
    }
    __syncthreads();
    float logit = scratch[0];
    if (recurrent) logit = recur(g, unit.gate == g.first, sample, scratch, scratch + gate::kEmbedding);
    if (threadIdx.x == 0) {
      const float score = gate_score(g.kind, logit);
      const bool open = g.forced ? g.forced[row + unit.gate] != 0 : score > g.threshold[unit.gate];
      g.score[row + unit.gate] = score;
      g.taken[row + unit.gate] = open;
      if (open) set_word(g.words + static_cast<int64_t>(unit.gate) * g.word_count, sample);
    }
    __syncthreads();
  }
  const int each = outputs * g.channels + (recurrent ? 8 * outputs * outputs + outputs : 0);
  if (threadIdx.x == 0 && decided) atomicAdd(macs + sample, static_cast<unsigned long long>(decided) * each);
}

template <int kThreadCount>
__global__ void __launch_bounds__(kThreadCount) unit_gate_kernel(const __grid_constant__ UnitGateParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int sample = pick_sample(p.samples, blockIdx.x);
  if (sample < 0) return;
  decide_units(p.gates, p.pooled + static_cast<int64_t>(sample) * p.positions, sample, p.macs, shared_memory<float>());
}

template <int kThreadCount>
__global__ void __launch_bounds__(kThreadCount) linear_kernel(const __grid_constant__ LinearParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int sample = pick_sample(p.samples, blockIdx.x);
  if (sample < 0) return;
  const float* pooled = p.pooled + static_cast<int64_t>(sample) * p.positions;
  for (int k = threadIdx.x / 32; k < p.classes; k += kThreadCount / 32) {
    const float dot = warp_dot(p.weight + static_cast<int64_t>(k) * p.channels, pooled, p.channels);
    if (threadIdx.x % 32 == 0) p.logits[sample * p.row + k] = dot + p.bias[k];
  }
  if (threadIdx.x == 0) atomicAdd(p.macs + sample, static_cast<unsigned long long>(p.channels) * p.classes);
}

}  // namespace dsn::cuda
