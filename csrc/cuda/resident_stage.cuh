// Residual units of two 3x3 convolutions that follow one another on one map, in one launch: a cluster holds a sample's
// map in its shared memory, a block some of the rows and some of the columns of weights, and walks the units together.
// A bypassed unit is a branch: every block decides its gate for itself, from channel sums that all of them have. Behind
// a convolution blocks write their outputs to all that read them and meet at one barrier of the cluster; the weights of
// the next one land meanwhile.
#pragma once

#include "cuda/tile.cuh"
#include "cuda/unit_gate.cuh"

namespace dsn::cuda {

// d += the products of a 3x3 for 8 pixels side by side in 2 kMt rows above one another, of every `every`-th k-step from
// `first` on. `pixel`: a lane's, in the frame at the window's upper left. A row of pixels is half of what an
// instruction takes: it is loaded once and serves all of the window's rows.
template <class T, int kMt, int kNt>
__device__ inline void multiply_window(const T* pixel, int row_pitch, int cell, const Weights<T>& weights, int column,
                                       int first, int every, Accumulator<kMt, kNt>& d) {
  const int steps = weights.groups / 4;
  if constexpr (sizeof(T) == 2) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll 1
    for (int step = first; step < steps; step += every) {
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
    SharedOperands<T, kMt> operands{pixel, weights, column};
#pragma unroll
    for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
      for (int r = 0; r < 2; ++r) operands.offset[mt][r] = (2 * mt + r) * row_pitch;
#pragma unroll 1
    for (operands.tap = 0; operands.tap < 9; ++operands.tap) {
      operands.tap_offset = operands.tap / 3 * row_pitch + operands.tap % 3 * cell;
#pragma unroll 1
      for (operands.step = first; operands.step < steps; operands.step += every)
        multiply<T, true, kMt, kNt>(d, operands, kNt);
    }
  }
}

template <class T, int kMt, int kNt>
struct StageBlock {
  const StageParams& p;
  int rank, blocks, row_part, column_part;
  MapTile tile;
  T *state, *mid;   // [cell][stride], a frame around the own pixels
  float* received;  // [channel][received_pitch]: sums of what each warp of the cluster wrote

  __device__ StageBlock(const StageParams& p, int rank)
      : p(p),
        rank(rank),
        blocks(p.down * p.across),
        row_part(rank / p.across),
        column_part(rank % p.across),
        tile(row_part, p.rows, p.map.width, 1, p.map.width, p.map.height),
        state(shared_memory<T>(p.at_state)),
        mid(shared_memory<T>(p.at_mid)),
        received(shared_memory<float>(p.at_received)) {}

  __device__ int channels() const { return p.groups * kGroup; }
  __device__ T* global(int sample, int y, int x) const {
    return static_cast<T*>(p.map.data) + sample * p.map.sample_stride +
           static_cast<int64_t>(y * p.map.width + x) * p.map.channels;
  }
  template <class U>
  __device__ const U* field(int32_t place) const {
    return reinterpret_cast<const U*>(p.weights + static_cast<int64_t>(place) * 16);
  }
  template <class U>
  __device__ static void copy(U* to, const U* from, int bytes) {
    constexpr int kPiece = 16 / sizeof(U);
    for (int i = threadIdx.x; i < (bytes + 15) / 16; i += kStageThreads)
      ptx::cp_async<16>(ptx::shared_address(to + i * kPiece), from + i * kPiece);
  }

  // Starts to copy the map with its frame; zeros around it and where nothing has been written yet.
  __device__ void load(int sample) const {
    const int groups = p.map.channels / kGroup;
    for (int i = threadIdx.x; i < p.frame_rows * p.pitch * p.groups; i += kStageThreads) {
      const int cell = i / p.groups, group = i % p.groups;
      const int y = tile.y + cell / p.pitch - 1, x = cell % p.pitch - 1, at = cell * p.stride + group * kGroup;
      if (group < groups && y >= 0 && y < p.map.height && x >= 0 && x < p.map.width)
        ptx::cp_async<kGroup * sizeof(T)>(ptx::shared_address(state + at), global(sample, y, x) + group * kGroup);
      else
        store_quad<T>(state, at, {});
      store_quad<T>(mid, at, {});
    }
    for (int i = threadIdx.x; i < channels() * p.received_pitch; i += kStageThreads) received[i] = 0;
  }
  __device__ void store(int sample) const {
    const int groups = p.map.channels / kGroup;
    for (int i = column_part * kStageThreads + threadIdx.x; i < tile.pixels() * groups; i += p.across * kStageThreads) {
      const int y = i / groups / tile.columns, x = i / groups % tile.columns, group = i % groups;
      store_quad<T>(global(sample, tile.y + y, x), group * kGroup,
                    load_quad<T>(state, ((y + 1) * p.pitch + x + 1) * p.stride + group * kGroup));
    }
  }

  // Starts to copy weights and bias of a convolution for the own columns.
  __device__ void fetch(const StageUnit& unit, int conv) const {
    constexpr int kPiece = 16 / sizeof(T);
    const int row = p.columns * kGroup, pieces = row / kPiece;
    const T* from = field<T>(unit.weight[conv]) + column_part * row;
    T* to = shared_memory<T>(p.at_weights + conv * p.weight_bytes);
    for (int i = threadIdx.x; i < 9 * p.groups * pieces; i += kStageThreads) {
      const int group = i / pieces, piece = i % pieces * kPiece;
      ptx::cp_async<16>(ptx::shared_address(to + group * p.weight_pitch + piece),
                        from + static_cast<int64_t>(group) * channels() * kGroup + piece);
    }
    copy(shared_memory<float>(p.at_bias + conv * p.bias_bytes), field<float>(unit.bias[conv]) + column_part * p.columns,
         p.columns * 4);
    ptx::cp_async_commit();
  }
  // The same of a unit's gate, and behind it of its first convolution: those of a unit that will be shut are in vain.
  __device__ void fetch_unit(const StageUnit& unit) const {
    if (unit.gate >= 0) {
      const UnitGate& gate = p.gates.unit[unit.gate];
      const int outputs = p.gates.kind == GateKind::kRecurrent ? gate::kEmbedding : 1;
      copy(shared_memory<float>(p.at_embed), field<float>(gate.weight), (gate.bias - gate.weight) * 16 + outputs * 4);
    }
    ptx::cp_async_commit();
    fetch(unit, 0);
  }
  __device__ GateWeights gate_weights(const StageUnit& unit) const {
    const UnitGate& gate = p.gates.unit[unit.gate];
    const Recurrence& from = p.gates.shared;
    const float *weight = shared_memory<float>(p.at_embed), *shared = shared_memory<float>(p.at_shared);
    return {weight,
            weight + (gate.bias - gate.weight) * 4,
            {shared, shared + (from.hidden - from.input), shared + (from.bias - from.input),
             shared + (from.projection - from.input), shared + (from.projection_bias - from.input)},
            shared_memory<GateLimit>(p.at_limits) + unit.gate};
  }

  // Two channels of a pixel, for all blocks in whose frame it lies.
  __device__ void write(T* frame, int y, int x, int column, float v0, float v1) const {
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

  // The 3x3 of a frame: visit(y, x, channel, values of two channels); sums what it returns for all blocks if asked to.
  template <class Visit>
  __device__ void convolve(const T* frame, int conv, bool wants_sums, Visit visit) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, across = p.columns / (8 * kNt);
    const Weights<T> weights{shared_memory<T>(p.at_weights + conv * p.weight_bytes), p.groups, p.weight_pitch};
    const float* bias = shared_memory<float>(p.at_bias + conv * p.bias_bytes);
    const int items = p.pieces * across, slots = kStageWarps / p.split;
    for (int item = warp / p.split; p.split > 1 || item < items; item += slots) {
      const int piece = item / across, column = item % across * 8 * kNt;
      const int y0 = piece / p.strips * 2 * kMt, x = piece % p.strips * 8 + g;
      const bool has = item < items && y0 < tile.rows;
      Accumulator<kMt, kNt> d;
      clear<kMt, kNt>(d);
      if (has)
        multiply_window<T, kMt, kNt>(frame + (y0 * p.pitch + x) * p.stride, p.pitch * p.stride, p.stride, weights,
                                     column, warp % p.split, p.split, d);
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
  // A warp's channel sums to every block: the eight groups of lanes that have the same channels take a block each.
  __device__ void send(const float (&sum)[kNt][2], int place, int column) const {
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float v = sum[nt][i];
        for (int d = 4; d < 32; d *= 2) v += __shfl_xor_sync(kAllLanes, v, d);
        const int to = threadIdx.x % 32 / 4;
        if (to < blocks) ptx::map_shared(received, to)[(column + column_of(nt) + i) * p.received_pitch + place] = v;
      }
  }

  __device__ void first_conv() const {
    convolve(state, 0, false, [&](int y, int x, int channel, float v0, float v1) {
      write(mid, y, x, channel, relu(v0), relu(v1));
      return float2{0, 0};
    });
  }
  __device__ void last_conv() const {
    convolve(mid, 1, p.pooled != nullptr, [&](int y, int x, int channel, float v0, float v1) {
      const float2 old = load_pair<T>(state, ((y + 1) * p.pitch + x + 1) * p.stride + channel);
      const float2 v{relu(v0 + old.x), relu(v1 + old.y)};
      write(state, y, x, channel, v.x, v.y);
      return v;
    });
  }
  // The pooled vector of what last_conv wrote, behind the cluster's barrier.
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

template <class T, int kMt, int kNt>
__global__ void __launch_bounds__(kStageThreads, 1) resident_stage_kernel(const __grid_constant__ StageParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  const int blocks = p.down * p.across, rank = static_cast<int>(blockIdx.x) % blocks;
  const int sample = pick_sample(p.samples, blockIdx.x / blocks);
  if (sample < 0) return;  // of the whole cluster
  const StageBlock<T, kMt, kNt> block(p, rank);
  float* scratch = shared_memory<float>(p.at_gate);
  float* hidden = shared_memory<float>(p.at_hidden);
  float* pooled = shared_memory<float>(p.at_pooled);
  float* kept_pooled = p.pooled ? p.pooled + static_cast<int64_t>(sample) * p.map.channels : nullptr;
  float* kept_hidden = p.gates.hidden ? p.gates.hidden + static_cast<int64_t>(sample) * kHiddenState : nullptr;
  block.load(sample);
  for (int i = threadIdx.x; i < block.channels() && p.own_gates; i += kStageThreads)
    pooled[i] = i < p.map.channels ? kept_pooled[i] : 0.f;
  for (int i = threadIdx.x; i < kHiddenState && kept_hidden; i += kStageThreads) hidden[i] = kept_hidden[i];
  if (kept_hidden && p.own_gates) {
    const Recurrence& from = p.gates.shared;
    block.copy(shared_memory<float>(p.at_shared), from.input,
               static_cast<int>(from.projection_bias + 1 - from.input) * 4);
  }
  for (int i = threadIdx.x; i < p.own_gates; i += kStageThreads)
    shared_memory<GateLimit>(p.at_limits)[i] = limit_of(p.gates, p.gates.unit[i].gate, sample);
  block.fetch_unit(p.unit[0]);
  ptx::cp_async_wait<1>();
  ptx::cluster_sync();  // every block has its frames, and is there to be written to
  int ran = 0, decided = 0;
#pragma unroll 1
  for (int u = 0; u < p.units; ++u) {
    const StageUnit& unit = p.unit[u];
    if (unit.gate >= 0) {
      ptx::cp_async_wait<1>();
      __syncthreads();  // the gate's weights, and what it reads
      ++decided;
      if (!decide_unit(p.gates, unit.gate, block.gate_weights(unit), pooled, hidden, sample, scratch, rank == 0)) {
        ptx::cp_async_wait<0>();  // what follows lands in the same place
        if (u + 1 < p.units) block.fetch_unit(p.unit[u + 1]);
        continue;
      }
    }
    ++ran;
    block.fetch(unit, 1);
    ptx::cp_async_wait<1>();
    __syncthreads();
    block.first_conv();
    ptx::cp_async_wait<0>();
    ptx::cluster_sync();
    if (u + 1 < p.units) block.fetch_unit(p.unit[u + 1]);
    block.last_conv();
    ptx::cluster_sync();
    if (p.pooled) block.pool(pooled);
  }
  ptx::cp_async_wait<0>();
  __syncthreads();
  if (ran > 0) block.store(sample);
  if (rank != 0) return;
  // What the launches behind this one begin with, and the gates that read this map and no other.
  for (int i = threadIdx.x; i < p.map.channels && ran > 0 && p.pooled; i += kStageThreads) kept_pooled[i] = pooled[i];
  decided += decide_units(p.gates, p.own_gates, pooled, hidden, sample, scratch);
  for (int i = threadIdx.x; i < kHiddenState && kept_hidden && decided > 0; i += kStageThreads)
    kept_hidden[i] = hidden[i];
  const auto convs = static_cast<unsigned long long>(ran) * 2 * 9 * p.channels * p.channels;
  if (threadIdx.x == 0) atomicAdd(p.macs + sample, convs * p.map.width * p.map.height + decided * gate_macs(p.gates));
}

}  // namespace dsn::cuda
