// A plan as launches: where everything lies in memory, and the tile that each layer is cut into. Plain C++; computed
// from the plan and the batch size alone, so that a captured graph fits every gate pattern.
#pragma once

#include <string>
#include <vector>

#include "common/plan.h"
#include "cuda/layout.h"
#include "cuda/params.h"

namespace dsn::cuda {

struct DeviceLimits {
  int multiprocessors = 132;
  int shared_bytes = 227 * 1024;  // of a block
};

// A buffer of the plan: its channels and what decides on them.
struct State {
  Channels channels;
  int64_t sample_stride = 0;  // elements, both copies of an add block's
  int64_t copy_stride = 0;
  int64_t at = 0;         // bytes
  int block = -1;         // instruction that is its dense block, if any
  int64_t pooled_at = 0;  // float [B][groups * kGroup]
  int64_t words_at = 0;   // uint64 [layers][word_count]
};

// Layers of growth rate 12 or so, of which a kernel knows the sizes when it is compiled.
inline bool has_exact_kernel(const Instruction& block) {
  return block.merge == Merge::kConcat && columns_of(block.bottleneck) == 48 && columns_of(block.out_channels) == 16;
}

// How a layer's map is cut, and the shared memory of a block that does one tile.
struct LayerTile {
  int rows = 0, columns = 0, down = 0, across = 0;
  int depth = 0;  // plain: groups of a pass
  int mid_stride = 0, wide_stride = 0;
  int at_masks = 0, at_groups = 0, at_bias = 0, at_sums = 0, at_mid = 0, at_wide = 0, at_conv = 0, shared_bytes = 0;
  int tiles() const { return down * across; }
};

struct Schedule {
  // Throws std::runtime_error of one line if the plan asks for what these kernels do not do.
  Schedule(const char* op, const Plan& plan, const std::vector<int>& stream_of_buffer, int streams, Element element,
           int64_t batch, const DeviceLimits& limits);

  std::vector<State> states;                       // of each buffer
  std::vector<std::vector<PackedLayout>> layouts;  // of each instruction: a dense block's gates, then its layers
  std::vector<std::vector<LayerTile>> tiles;       // of each dense block's layers
  std::vector<std::vector<int64_t>> arrived_at;    // of each instruction, of each layer: uint32 [B]
  std::vector<int64_t> partial_at;                 // of each stream
  int64_t word_count = 0;
  int64_t zero_bytes = 0;  // the workspace's first bytes, zero before a run
  int64_t workspace_bytes = 0;
  int64_t weight_bytes = 0;  // that the plan reads, at least

 private:
  int64_t reserve(int64_t bytes);
};

// Channels of a state as layer `layer` of its block reads them.
inline Channels channels_before(const State& state, int64_t layer) {
  return {state.channels.first, state.channels.width ? layer : 0, state.channels.width};
}

LayerTile choose_tile(const BufferSpec& map, const Instruction& block, const Channels& in, Element element,
                      int64_t batch, int streams, const DeviceLimits& limits);

}  // namespace dsn::cuda
