// A plan as launches: where everything lies in memory, and the tile that each layer is cut into. Plain C++; computed
// from the plan and the batch size alone, so that a captured graph fits every gate pattern.
#pragma once

#include <string>
#include <vector>

#include "common/check.h"
#include "cuda/layout.h"
#include "cuda/machine.h"
#include "cuda/params.h"
#include "plan/plan.h"

namespace dsn::cuda {

// A buffer of the plan: its channels and what decides on them.
struct State {
  Channels channels;
  int64_t sample_stride = 0;  // elements, both copies of an add block's
  int64_t copy_stride = 0;
  int64_t at = 0;          // bytes
  int block = -1;          // instruction that is its dense block, if any
  int64_t pooled_at = -1;  // float [B][groups * kGroup], if anything reads it
  int64_t words_at = 0;    // uint64 [layers][word_count]
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
  int at_pooled = 0, at_received = 0;  // resident
  bool resident = false;               // a cluster of all tiles walks the layers of the block
  int tiles() const { return down * across; }
};

// Activations in shared memory: pixels so far apart that the lanes of a load meet different banks. A 16-bit load takes
// 32 bytes of each of four pixels, a float32 load 16 bytes of each of eight.
inline int cell_stride(int64_t channels, Element element) {
  const int64_t unit = element == Element::kFloat ? 4 : 16;
  return static_cast<int>((ceil_div(channels, unit) | 1) * unit);
}

// A convolution's or pool's window; pads: rows and columns of zeros before the map.
struct Kernel {
  explicit Kernel(const Instruction& in)
      : columns(in.columns     ? in.columns
                : in.taps == 9 ? 3
                               : 1),
        rows(in.taps / columns),
        pad_rows(in.columns ? in.pad_rows : rows / 2),
        pad_columns(in.columns ? in.pad_columns : columns / 2) {}
  int64_t columns, rows, pad_rows, pad_columns;
};

// What each product of a convolution reads and leaves, and how many groups of the source that takes.
inline int64_t inputs_of(const Instruction& conv) { return conv.in_channels / conv.groups; }
inline int64_t outputs_of(const Instruction& conv) { return conv.out_channels / conv.groups; }
inline int64_t input_groups(const Instruction& conv) {
  return packed_conv2d::groups(conv.src_offset, inputs_of(conv), conv.groups);
}

// Whether a convolution is one product, and nothing or ReLU follows it: then kernels know it when they are compiled.
inline bool is_plain(const Instruction& conv) {
  return conv.groups == 1 && (conv.activation == Activation::kIdentity || conv.activation == Activation::kRelu);
}

// Whether a convolution's filters or inputs may be chosen; whether inputs without data are constants to it.
inline bool has_chosen(const Instruction& conv) {
  return conv.out_mask >= 0 || conv.in_mask >= 0 || conv.flags & kLive;
}
inline bool has_constants(const Instruction& conv) { return conv.flags & kLive && conv.flags & kNormalise; }

// How a convolution's map and columns are cut, and the shared memory of a block.
struct ConvTile {
  int rows = 0, columns = 0, down = 0, across = 0;
  int block_columns = 0, column_blocks = 0;
  int warp_tiles = 0, warps_down = 0;  // of 8 columns; warps over pixels
  int depth = 0, cell_stride = 0;
  int slots = 1, split = 1;  // of shared memory, one for each pass in flight; blocks that share the input channels out
  int pack = 1;              // samples of a tile
  int old_stride = 0;        // elements from one pixel to the next of what is added to, 0 if it is not staged
  int at_lists = 0, at_norm = 0, at_bias = 0, at_sums = 0, at_cells = 0, at_weights = 0, slot_bytes = 0, at_old = 0,
      shared_bytes = 0;
  int resident = 1;  // blocks of a multiprocessor
  int tiles() const { return down * across; }
  int blocks() const { return tiles() * column_blocks; }
};

struct ConvStep {
  ConvTile tile;
  bool packed = false;     // chosen filters are stored side by side
  bool scattered = false;  // inputs that hold data are in their places
  bool off_look = false;   // the kernel must also store what filters leave that are off
  int walk = 0;            // tiles side by side that a block does; 0: any
};

// Channels of which some hold data in a sample, range by range.
struct ChannelList {
  std::vector<ChannelRange> ranges;
  int64_t at = 0;           // of a sample's lists
  int64_t first_range = 0;  // of all
  int64_t channels() const {
    int64_t sum = 0;
    for (const ChannelRange& range : ranges) sum += range.channels;
    return sum;
  }
};
// The channels of a list's first `ranges` ranges; list -1: all channels there are.
struct Listed {
  int list = -1, ranges = 0;
};
using Making = std::vector<Listed>;  // lists to be made, up to the range whose gates are not decided yet

// A gate that is decided by the launch which writes what it reads.
struct ChainedGate {
  int instruction = 0;
  int64_t unless = -1;  // a gate: where it is open, a later launch decides
};

// Update units, one after the other, that a launch does: the instructions that each is made of, and the shared memory
// of a block.
struct GradualRun {
  struct Segment {
    int first = 0, conv = 0, last = 0, add = -1;  // instructions; without a shortcut there is no add
  };
  std::vector<Segment> segments;
  int begin = 0, end = 0;  // instructions
  bool holds(int64_t index) const { return index >= begin && index < end; }
  int rows = 0, blocks = 0;
  int state_stride = 0, width_stride = 0, add_stride = 0, width_channels = 0;
  int at_state = 0, at_mid = 0, at_inner = 0, at_add = 0, shared_bytes = 0;
};

// Residual units of two 3x3 convolutions, one after the other, that a launch does: on one map, then perhaps on others
// to each of which a unit of stride 2 leads from the one before.
struct StageRun {
  struct Unit {
    int gate = -1, shortcut = -1, first = 0, last = 0;  // instructions; gate: the one in front that decides on it
  };
  struct OneMap {
    int64_t buffer = 0;
    std::vector<Unit> units;
    StageCut cut;
  };
  std::vector<OneMap> maps;
  int begin = 0, end = 0;  // instructions
  int64_t only_if = -1;    // a gate that was decided before: of the only unit then
  int blocks() const { return maps[0].cut.down * maps[0].cut.across; }
  int shared_bytes() const { return maps[0].cut.shared_bytes; }
  bool holds(int64_t index) const { return index >= begin && index < end; }
};

// Pre-activation bottleneck units, one after the other on one map, that a launch does: each begins three instructions
// behind the one before.
struct BottleneckRun {
  int begin = 0, end = 0;  // instructions
  BottleneckCut cut;
  int units() const { return (end - begin) / 3; }
  bool holds(int64_t index) const { return index >= begin && index < end; }
};

struct Schedule {
  // Throws one line if something does not fit the device; what no kernel serves, lowering has refused.
  Schedule(const char* op, const Plan& plan, Element element, int64_t batch, const Machine& machine);

  std::vector<State> states;                       // of each buffer
  std::vector<std::vector<PackedLayout>> layouts;  // of each instruction: a dense block's gates, then its layers
  std::vector<std::vector<LayerTile>> tiles;       // of each dense block's layers
  std::vector<std::vector<int64_t>> arrived_at;    // of each instruction, of each layer: uint32 [B]
  std::vector<int64_t> partial_at;                 // of each stream
  std::vector<ConvStep> convs;                     // of each instruction
  std::vector<GradualRun> gradual;                 // in order
  std::vector<StageRun> stages;                    // in order
  std::vector<BottleneckRun> bottlenecks;          // in order
  std::vector<std::vector<ChainedGate>> chains;    // of each instruction; empty: gates are launches of their own
  std::vector<ChannelList> lists;
  std::vector<Listed> inputs, filters;  // of each instruction: channels that hold data, filters that are on
  std::vector<int> decided_by;          // of each gate: the instruction that decides it, -1: the call forces it
  Making listed_first;                  // made before all instructions, of gates that none decides
  std::vector<Making> listed_behind;    // of each instruction: made when it has decided
  int64_t list_stride = 0, range_count = 0;
  int64_t lists_at = 0, counts_at = 0;  // uint16 [B][list_stride], int32 [B][range_count]
  int64_t gate_words_at = 0;            // uint64 [gates][word_count], of gates that instructions decide
  int64_t hidden_at = 0;                // float [B][2 kEmbedding], of recurrent gates
  bool grouped = false;                 // samples with equal masks are taken behind one another
  int64_t order_at = 0, alike_at = 0;   // int64 [B], int32 [B], where grouped
  int64_t word_count = 0;
  int multiprocessors = 0;
  int64_t zero_bytes = 0;  // the workspace's first bytes, zero before a run
  int64_t workspace_bytes = 0;
  int64_t weight_bytes = 0;  // that the plan reads, at least

 private:
  int64_t reserve(int64_t bytes);
  void place_states(const Plan& plan, int64_t batch);
  void place_lists(const char* op, const Plan& plan, int64_t batch);
  void find_making();
  void place_groups(const Plan& plan, Element element, int64_t batch, const Machine& machine);
};

// Channels of a state as layer `layer` of its block reads them.
inline Channels channels_before(const State& state, int64_t layer) {
  return {state.channels.first, state.channels.width ? layer : 0, state.channels.width};
}

// The update units of a plan that one launch per layer can do on this device.
std::vector<GradualRun> find_gradual_runs(const Plan& plan, Element element, int64_t batch, const Machine& machine);

// The residual units of a plan that one launch for each stage can do on this device.
std::vector<StageRun> find_stage_runs(const Plan& plan, Element element, int64_t batch, const Machine& machine);

// The bottleneck units of a plan that one launch for each map can do on this device.
std::vector<BottleneckRun> find_bottleneck_runs(const Plan& plan, Element element, int64_t batch,
                                                const Machine& machine);

// The gates that each instruction of a plan decides as soon as it has pooled, but for those that `stages` decide on
// their way; nothing where one of them cannot be.
std::vector<std::vector<ChainedGate>> chain_gates(const Plan& plan, const std::vector<StageRun>& stages);

ConvTile choose_conv_tile(const BufferSpec& to, const Instruction& in, Element element, int64_t batch,
                          const Machine& machine);

LayerTile choose_tile(const BufferSpec& map, const Instruction& block, const Channels& in, Element element,
                      int64_t batch, int streams, const Machine& machine, bool resident = false);

}  // namespace dsn::cuda
