// gate, decide, linear, fully_connected: what is computed from a map's pooled vector. Gates are decided by the last
// block that wrote the map, or, where that cannot be, by a kernel of their own, a block per sample.
#pragma once

#include "cuda/routing.cuh"

namespace dsn::cuda {

constexpr int kGateThreads = 128;

__device__ inline float warp_dot(const float* a, const float* b, int n) {
  float z = 0;
  for (int c = threadIdx.x % 32; c < n; c += 32) z = fmaf(a[c], b[c], z);
  return warp_sum(z);
}

constexpr int kHiddenState = 2 * gate::kEmbedding;  // hidden, cell

// A gate opens if its score exceeds the threshold, unless it is forced: 0 shut, 1 open, -1 not forced.
struct GateLimit {
  float threshold;
  int forced;
};

// A gate's own weights, and those of the LSTM that recurrent gates share.
struct GateWeights {
  const float *weight, *bias;
  Recurrence shared;
  const GateLimit* limit;  // null: where the call has it
  int channels;
};

__device__ inline GateLimit limit_of(const UnitGates& g, int gate, int sample) {
  return {g.threshold[gate], g.forced ? g.forced[sample * g.gates + gate] != 0 : -1};
}
__device__ inline GateWeights weights_of(const UnitGates& g, const UnitGate& unit) {
  auto field = [&](int32_t place) {
    return reinterpret_cast<const float*>(g.weights + static_cast<int64_t>(place) * 16);
  };
  return {field(unit.weight), field(unit.bias), g.shared, nullptr, g.channels};
}

// One step of the LSTM that all gates of a network share, in two parts; `state` is [kHiddenState], `pre` [4 kEmbedding]
// of shared memory. The first part sums what the state gives; the block's last two warps call it.
__device__ inline void recur_state(const Recurrence& shared, bool first, const float* state, float* pre) {
  constexpr int n = gate::kEmbedding;
  const int i = static_cast<int>(threadIdx.x) - (static_cast<int>(blockDim.x) - 64);
  if (i < 0 || i >= 4 * n) return;
  float z = shared.bias[i];
  for (int k = 0; k < n && !first; ++k) z = fmaf(shared.hidden[i * n + k], state[k], z);
  pre[i] = z;
}
// The second part adds the embedded input and returns the logit. One warp calls it.
__device__ inline float recur(const Recurrence& shared, bool first, float* state, const float* embedded, float* pre) {
  constexpr int n = gate::kEmbedding;
  const int lane = threadIdx.x % 32;
  for (int i = lane; i < 4 * n; i += 32) {
    float z = pre[i];
    for (int k = 0; k < n; ++k) z = fmaf(shared.input[i * n + k], embedded[k], z);
    pre[i] = z;
  }
  __syncwarp();
  float part = 0;
  if (lane < n) {
    const float keep = gate_score(GateKind::kSoft, pre[n + lane]), take = gate_score(GateKind::kSoft, pre[lane]);
    const float cell = (first ? 0.f : keep * state[n + lane]) + take * tanhf(pre[2 * n + lane]);
    const float hidden = gate_score(GateKind::kSoft, pre[3 * n + lane]) * tanhf(cell);
    state[lane] = hidden;
    state[n + lane] = cell;
    part = shared.projection[lane] * hidden;
  }
  return warp_sum(part) + *shared.projection_bias;
}
constexpr int kGateBytes = 6 * gate::kEmbedding * 4;  // of shared memory

__device__ inline int gate_macs(GateKind kind, int channels) {
  constexpr int n = gate::kEmbedding;
  return kind == GateKind::kRecurrent ? n * channels + 8 * n * n + n : channels;
}

// Decides a sample's gate g.unit[i], the same to all threads of the block, which all call it, behind a barrier after
// `pooled` was written. `state`: of the LSTM. `scratch`: kGateBytes of shared memory; `keeps`: writes the decision
// down.
__device__ inline bool decide_unit(const UnitGates& g, int i, const GateWeights& w, const float* pooled, float* state,
                                   int sample, float* scratch, bool keeps) {
  const bool recurrent = g.kind == GateKind::kRecurrent;
  const UnitGate& unit = g.unit[i];
  const bool first = unit.gate == g.first;
  float *embedded = scratch + 1, *pre = scratch + 2 * gate::kEmbedding;
  for (int r = threadIdx.x / 32; r < (recurrent ? gate::kEmbedding : 1); r += blockDim.x / 32) {
    const float dot = warp_dot(w.weight + r * w.channels, pooled, w.channels);
    if (threadIdx.x % 32 == 0) embedded[r] = dot + w.bias[r];
  }
  if (recurrent) recur_state(w.shared, first, state, pre);
  __syncthreads();
  if (threadIdx.x < 32) {
    const float logit = recurrent ? recur(w.shared, first, state, embedded, pre) : embedded[0];
    if (threadIdx.x == 0) {
      const GateLimit limit = w.limit ? *w.limit : limit_of(g, unit.gate, sample);
      const float score = gate_score(g.kind, logit);
      const bool open = limit.forced >= 0 ? limit.forced != 0 : score > limit.threshold;
      scratch[0] = open ? 1.f : 0.f;
      if (keeps) {
        g.score[sample * g.gates + unit.gate] = score;
        g.taken[sample * g.gates + unit.gate] = open;
        if (open) set_word(g.words + static_cast<int64_t>(unit.gate) * g.word_count, sample);
      }
    }
  }
  __syncthreads();
  return scratch[0] != 0;
}

// Decides a sample's gates in order from g.unit[first] on, up to the first that opens, and returns how many it decided.
// The whole block calls it, as it calls decide_unit.
__device__ inline int decide_units(const UnitGates& g, int first, const float* pooled, float* state, int sample,
                                   float* scratch) {
  int next = first;
  for (; next < g.count; ++next) {
    const UnitGate& unit = g.unit[next];
    if (unit.unless >= 0 && g.taken[sample * g.gates + unit.unless]) break;
    decide_unit(g, next, weights_of(g, unit), pooled, state, sample, scratch, true);
  }
  return next - first;
}

// Decides all of a sample's gates, with the LSTM's state where it lies between launches, and counts their MACs.
__device__ inline void decide_units(const UnitGates& g, const float* pooled, int sample, unsigned long long* macs,
                                    float* scratch) {
  float* state = g.hidden ? g.hidden + static_cast<int64_t>(sample) * kHiddenState : nullptr;
  const int decided = decide_units(g, 0, pooled, state, sample, scratch);
  if (threadIdx.x == 0 && decided)
    atomicAdd(macs + sample, static_cast<unsigned long long>(decided) * gate_macs(g.kind, g.channels));
}

// Leaves a gate, by its place, as one that does not run.
__device__ inline void shut_gate(uint8_t* taken, float* score, int64_t place) {
  taken[place] = 0;
  score[place] = 0;
}

template <int kThreadCount>
__global__ void __launch_bounds__(kThreadCount) unit_gate_kernel(const __grid_constant__ UnitGateParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int sample = pick_sample(p.samples, blockIdx.x);
  if (sample < 0) return;
  if (p.only_if >= 0 && !p.gates.taken[sample * p.gates.gates + p.only_if]) {
    for (int i = threadIdx.x; i < p.gates.count; i += kThreadCount)
      shut_gate(p.gates.taken, p.gates.score, sample * p.gates.gates + p.gates.unit[i].gate);
    return;
  }
  decide_units(p.gates, p.pooled + static_cast<int64_t>(sample) * p.positions, sample, p.macs, shared_memory<float>());
}

// A block per sample.
template <int kThreadCount>
__global__ void __launch_bounds__(kThreadCount) decide_kernel(const __grid_constant__ DecideParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int sample = pick_sample(p.samples, blockIdx.x);
  if (sample < 0) return;
  const int64_t row = sample * p.gates;
  const bool shut = p.only_if && !p.only_if[row];
  for (int i = threadIdx.x; i < p.count; i += kThreadCount) {
    if (shut) {
      shut_gate(p.taken, p.score, row + i);
      continue;
    }
    const float score = p.pooled[static_cast<int64_t>(sample) * p.positions + i];
    const bool open = p.forced ? p.forced[row + i] != 0 : score > p.threshold[i];
    p.score[row + i] = score;
    p.taken[row + i] = open;
    if (open) set_word(p.words + static_cast<int64_t>(i) * p.word_count, sample);
  }
}

template <int kThreadCount>
__global__ void __launch_bounds__(kThreadCount) linear_kernel(const __grid_constant__ LinearParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int sample = pick_sample(p.samples, blockIdx.x);
  if (sample < 0) return;
  const float* pooled = p.pooled + static_cast<int64_t>(sample) * p.positions;
  for (int k = threadIdx.x / 32; k < p.outputs; k += kThreadCount / 32) {
    const float dot = warp_dot(p.weight + static_cast<int64_t>(k) * p.channels, pooled, p.channels);
    if (threadIdx.x % 32 == 0) p.out[sample * p.row + k] = activate(p.activation, dot + p.bias[k]);
  }
  if (threadIdx.x == 0) atomicAdd(p.macs + sample, static_cast<unsigned long long>(p.channels) * p.outputs);
}

}  // namespace dsn::cuda
