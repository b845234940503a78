// Which sample a block works for, which channels of it are live, and the gates: nothing here waits for the host.
#pragma once

#include "cuda/element.cuh"
#include "cuda/params.h"

namespace dsn::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

// The sample that is set in `words` as number `index`, -1 if fewer are. A whole warp calls it.
__device__ inline int select_set_bit(const unsigned long long* words, int word_count, int index) {
  const int lane = threadIdx.x % 32;
  for (int first = 0; first < word_count; first += 32) {
    unsigned long long word = first + lane < word_count ? words[first + lane] : 0;
    const int own = __popcll(word);
    int upto = own;
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(kAllLanes, upto, d);
      if (lane >= d) upto += other;
    }
    const unsigned found = __ballot_sync(kAllLanes, upto > index);
    if (found) {
      const int holder = __ffs(found) - 1;
      int bit = 0;
      if (lane == holder) {
        for (int skip = index - (upto - own); skip > 0; --skip) word &= word - 1;
        bit = (first + lane) * 64 + __ffsll(static_cast<long long>(word)) - 1;
      }
      return __shfl_sync(kAllLanes, bit, holder);
    }
    index -= __shfl_sync(kAllLanes, upto, 31);
  }
  return -1;
}

// The sample of the launch's `index`-th place, -1 if there is none. A whole warp calls it.
__device__ inline int pick_sample(const Samples& s, int index) {
  if (s.words) return select_set_bit(s.words, s.word_count, index);
  return index < (s.count ? *s.count : s.batch) ? index : -1;
}

// A live group: where it begins in the state (elements; pixel 0) and its number among all groups. -1: padding of the
// last k-step.
struct GroupRef {
  int offset, id;
};

struct Live {
  int groups = 0;    // padded to whole k-steps
  int channels = 0;  // without any padding
  int taken = 0;     // layers of the block that ran
};

// Lists a sample's live groups and marks the slices that are live. One warp calls it; a barrier must follow.
__device__ inline Live find_live(const Source& s, int sample, GroupRef* groups, unsigned* masks) {
  const int lane = threadIdx.x % 32;
  Live live;
  for (int i = lane; i < s.first_groups; i += 32) groups[i] = {i * kGroup, i};
  live.groups = s.first_groups;
  const uint8_t* taken = s.taken + sample * s.gates;
  for (int first = 0; first < s.slices; first += 32) {
    const int slice = first + lane;
    const bool is_live = slice < s.slices && taken[slice] != 0;
    const unsigned mask = __ballot_sync(kAllLanes, is_live);
    if (is_live) {
      const int at = live.groups + __popc(mask & ((1u << lane) - 1)) * s.slice_groups;
      const int id = s.first_groups + slice * s.slice_groups;
      for (int r = 0; r < s.slice_groups; ++r) groups[at + r] = {id * kGroup * s.pixels + r * kGroup, id + r};
    }
    if (lane == 0) masks[first / 32] = mask;
    live.groups += __popc(mask) * s.slice_groups;
    live.taken += __popc(mask);
  }
  live.channels = s.first_channels + live.taken * s.slice_channels;
  const int padding = -live.groups & 3;
  if (lane < padding) groups[live.groups + lane] = {0, -1};
  live.groups += padding;
  return live;
}

// The threads of a block share this at the front of shared memory; the host places the rest.
struct BlockHeader {
  int sample;
  Live live;
  float scratch[3 * kWarps];
};
static_assert(sizeof(BlockHeader) <= kHeaderBytes);

// The work of this block: false if there is none. All threads call it; a barrier has passed when it returns true.
__device__ inline bool begin_block(const Samples& samples, const Source& source, int blocks, GroupRef* groups,
                                   unsigned* masks) {
  BlockHeader* header = shared_memory<BlockHeader>();
  if (threadIdx.x < 32) {
    const int sample = pick_sample(samples, blockIdx.x / blocks);
    Live live;
    if (sample >= 0) live = find_live(source, sample, groups, masks);
    if (threadIdx.x == 0) header->sample = sample, header->live = live;
  }
  __syncthreads();
  return header->sample >= 0;
}

// Elements from one pixel to the next for a group.
__device__ inline int pixel_stride(const Source& s, int id) {
  return (id < s.first_groups ? s.first_groups : s.slice_groups) * kGroup;
}

// The state that consumers read: for add blocks the copy that the last layer to run has written.
__device__ inline int64_t state_offset(const Source& s, int sample, int taken) {
  return sample * s.sample_stride + (taken & 1) * s.copy_stride;
}

__device__ inline bool slice_is_live(const unsigned* masks, int slice) { return masks[slice / 32] >> (slice % 32) & 1; }

__device__ inline float warp_sum(float v) {
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(kAllLanes, v, d);
  return v;
}

// A gate's score of its logit. A NaN stays NaN and, exceeding nothing, skips its layer, as in torch.
__device__ inline float gate_score(GateKind kind, float z) {
  if (kind == GateKind::kNone) return 1;
  if (kind == GateKind::kHard) return z + 0.5f < 0.f ? 0.f : z + 0.5f > 1.f ? 1.f : z + 0.5f;
  return 1 / (1 + expf(-z));
}

// Opens a gate for a sample; one thread calls it.
__device__ inline void set_word(unsigned long long* words, int sample) {
  atomicOr(words + sample / 64, 1ull << (sample % 64));
}

// The score of a sample's gate, in every lane of the warp that calls it.
__device__ inline float layer_score(const Gates& g, int layer, const float* pooled) {
  if (g.kind == GateKind::kNone) return 1;
  const float* weight = g.weight + static_cast<int64_t>(layer) * g.positions;
  const int width = (g.first_groups + layer * g.slice_groups) * kGroup;
  float z = 0;
  for (int c = threadIdx.x % 32; c < width; c += 32) z = fmaf(weight[c], pooled[c], z);
  return gate_score(g.kind, warp_sum(z) + g.bias[layer]);
}

__device__ inline bool layer_opens(const Gates& g, int sample, int layer, float score) {
  if (g.forced) return g.forced[sample * g.gates + layer] != 0;
  return g.kind == GateKind::kNone || score > g.threshold[layer];
}

// Decides a sample's gates from g.first_layer on, up to the first that opens; the whole block calls it, behind a
// barrier after `pooled` was written. `scratch` is shared memory of 3 words per warp.
__device__ inline void decide(const Gates& g, const float* pooled, int sample, unsigned long long* macs,
                              float* scratch) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  float* scores = scratch;
  int* opens = reinterpret_cast<int*>(scratch + warps);
  unsigned long long gate_macs = 0;
  for (int base = g.first_layer; base < g.layers; base += warps) {
    const int layer = base + warp;
    if (layer < g.layers) {
      const float score = layer_score(g, layer, pooled);
      if (lane == 0) scores[warp] = score, opens[warp] = layer_opens(g, sample, layer, score);
    }
    __syncthreads();
    const int count = min(warps, g.layers - base);
    int first = 0;
    while (first < count && !opens[first]) ++first;
    const int decided = min(first + 1, count);
    if (threadIdx.x < decided) {
      g.taken[sample * g.gates + base + threadIdx.x] = static_cast<uint8_t>(opens[threadIdx.x]);
      g.score[sample * g.gates + base + threadIdx.x] = scores[threadIdx.x];
    }
    if (g.kind != GateKind::kNone)
      for (int i = 0; i < decided; ++i) gate_macs += g.first_channels + (base + i) * g.slice_channels;
    if (first < count) {
      if (threadIdx.x == 0) set_word(g.words + static_cast<int64_t>(base + first) * g.word_count, sample);
      break;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0 && gate_macs) atomicAdd(macs + sample, gate_macs);
}

// Ends a block that wrote `columns` channels from `first_column` on of a tile: `sums` [rows][stride] of shared memory
// hold its channel sums in parts. The last block of the sample pools and gets the pooled vector, behind a barrier, the
// others null. The whole block calls it; `sums` need not be behind a barrier yet. `last`: a word of shared memory.
__device__ inline const float* pool_tile(const Pooling& p, int sample, int tile, const float* sums, int rows,
                                         int stride, int first_column, int columns, unsigned long long macs,
                                         int* last) {
  if (threadIdx.x == 0 && macs) atomicAdd(p.macs + sample, macs);
  if (!p.pooled) return nullptr;
  __syncthreads();
  float* partial = p.partial + static_cast<int64_t>(sample) * p.tiles * p.channels;
  float* pooled = p.pooled + static_cast<int64_t>(sample) * p.gates.positions;
  for (int c = threadIdx.x; c < columns && first_column + c < p.channels; c += blockDim.x) {
    float total = 0;
    for (int r = 0; r < rows; ++r) total += sums[r * stride + c];
    partial[tile * p.channels + first_column + c] = total;
  }
  if (p.blocks > 1) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) *last = atomicAdd(p.arrived + sample, 1u) == static_cast<unsigned>(p.blocks - 1);
    __syncthreads();
    if (!*last) return nullptr;
    __threadfence();
  } else {
    __syncthreads();
  }
  for (int c = threadIdx.x; c < p.channels; c += blockDim.x) {
    float total = 0;
    for (int t = 0; t < p.tiles; ++t) total += partial[t * p.channels + c];
    pooled[p.first_channel + c] = total / p.pixels;
  }
  __syncthreads();
  return pooled;
}

// pool_tile, and the last block decides the gates of a dense block. `scratch`: 2 words per warp and one more.
__device__ inline void finish(const Pooling& p, int sample, int tile, const float* sums, int rows, int stride,
                              int first_column, int columns, unsigned long long macs, float* scratch) {
  int* last = reinterpret_cast<int*>(scratch + 2 * (blockDim.x / 32));
  const float* pooled = pool_tile(p, sample, tile, sums, rows, stride, first_column, columns, macs, last);
  if (pooled) decide(p.gates, pooled, sample, p.macs, scratch);
}

}  // namespace dsn::cuda
