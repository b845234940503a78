// What an instruction's kernel works with: one sample, a team of threads, and the memory of both.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

#include "channels.h"
#include "compiled_plan.h"
#include "kernels.h"
#include "team.h"

namespace dsn::cpu {

// Where things live inside an arena, in floats; computed once per plan and team size. First the state of each sample
// that is worked on, `sample` floats each, then what they share.
struct MemoryMap {
  MemoryMap(const CompiledPlan& plan, int team_size);

  std::vector<int64_t> buffers;  // of a sample; those that are never needed at the same time share memory
  int64_t recurrent = 0;         // of a sample, per stream: a recurrent gate's state
  int64_t sample = 0;
  int64_t patches = 0;         // 3x3 inputs with their halo; every patch for a team, a ring of three for one thread
  int64_t patches_stride = 0;  // from stream to stream
  int64_t patch = 0;           // per thread: a convolution's input
  int64_t patch_stride = 0;
  int64_t selected = 0;  // per thread: weights of the filters that a mask chose
  int64_t selected_stride = 0;
  int64_t features = 0;         // a head's input
  int64_t features_stride = 0;  // from stream to stream
  int64_t scratch = 0;          // per thread: a tile, four planes
  int64_t plane_stride = 0;
  int64_t scratch_stride = 0;
  int64_t shared = 0;

  int64_t size(int samples) const { return samples * sample + shared; }

 private:
  void place_buffers(const CompiledPlan& plan, bool streams_take_turns);
};

// Inputs and outputs of one sample.
struct Sample {
  const float* image;      // [C, H, W]
  const uint8_t* forced;   // [gates] or null
  const float* threshold;  // [gates]
  uint8_t* taken;          // [gates]
  float* score;            // [gates]
  float* logits;           // [logits]
  float* map;              // [C, H, W] of the store instruction
  std::atomic<int64_t>* macs;
  int64_t* spans;  // [steps][kSpanFields] of this thread, or null: not timed
};

// A timed step leaves, for each thread, when it began and ended in nanoseconds of the steady clock, and its MACs.
constexpr int kSpanFields = 3;

// Packed weights by field.
struct Packed {
  const float* base;
  const Layout& layout;
  const float* operator[](int field) const { return base + layout.fields[field].offset; }
};

// One thread's way through the plan for one sample. Threads that share a sample begin with different streams; each
// walks all of them, late ones in passing.
class Worker {
 public:
  // teams: this thread's place in that of each stream, or one of a thread alone
  Worker(const CompiledPlan& compiled, const MemoryMap& memory, const float* weights, float* own, float* shared,
         Selection& selection, Sample sample, std::vector<Team> teams = {Team()})
      : compiled(compiled),
        plan(compiled.plan),
        memory(memory),
        weights(weights),
        own(own),
        shared(shared),
        selection(selection),
        sample(sample),
        live(plan.buffers.size()),
        teams_(std::move(teams)),
        walked_(compiled.plan.streams.size()) {}

  void run();
  void step(const Instruction& in);
  void count_macs() const { sample.macs->fetch_add(macs, std::memory_order_relaxed); }

  float* state(int64_t b) const { return own + memory.buffers[b]; }  // [tiles][channels][kTile]
  float* sums(int64_t b) const {                                     // [tiles][channels]
    return state(b) + plan.buffers[b].channels * plan.buffers[b].tiles() * kTile;
  }
  float* pooled(int64_t b) const { return sums(b) + plan.buffers[b].channels * plan.buffers[b].tiles(); }  // [channels]
  float* patches() const { return shared + memory.patches + stream_ * memory.patches_stride; }
  float* features() const { return shared + memory.features + stream_ * memory.features_stride; }
  float* recurrent_state() const { return own + memory.recurrent + stream_ * round_up(2 * gate::kEmbedding, kAlign); }
  float* patch() const { return shared + memory.patch + teams_[0].rank() * memory.patch_stride; }
  float* selected_weights() const { return shared + memory.selected + teams_[0].rank() * memory.selected_stride; }
  float* scratch() const { return shared + memory.scratch + teams_[0].rank() * memory.scratch_stride; }
  Team& team() { return teams_[stream_]; }
  int valid(const BufferSpec& b, int64_t tile) const {
    return static_cast<int>(std::min<int64_t>(kTile, b.pixels() - tile * kTile));
  }

  // Runs tiles and counts their multiply-accumulates, here and nowhere else. A long sum is taken in parts, each of them
  // added to the others: its rounding error grows with the longest.
  void conv(const ConvTile& tile, int taps) { conv(tile, taps, tile.live_count); }
  // live_channels: of tiles of pairs, which count those as live that hold one
  void conv(const ConvTile& tile, int taps, int64_t live_channels) {
    macs += live_channels * taps * tile.out_channels * ((tile.tiles - 1) * kTile + tile.valid);
    auto choose = [&](const auto& kernels) {
      return taps == 1 ? kernels.pointwise : tile.plane_stride ? kernels.conv3x3_stride2 : kernels.conv3x3;
    };
    auto* run = tile.pairs ? choose(*bfloat16) : choose(kernel);
    const int longest = tile.cached ? (taps == 1 ? kCachedPixels : kCachedPatches) : kLongestSum / taps;
    const int part = tile.dst_pairs ? tile.live_count : longest;
    ConvTile t = tile;
    int first = 0;
    do {
      const bool last = first + part >= tile.live_count;
      t.live_count = std::min(part, tile.live_count - first);
      t.live = tile.live + first;
      find_weights(t, tile.weight, taps * tile.tap_stride);
      if (tile.src_rows)
        t.src_rows = tile.src_rows + first;
      else
        t.src = tile.src + first * tile.src_stride;
      t.bias = first ? nullptr : tile.bias;
      t.accumulate = first || tile.accumulate;
      t.relu = last && tile.relu;
      t.sums = last ? tile.sums : nullptr;
      run(t);
      first += part;
    } while (first < tile.live_count);
  }

  // Whether an instruction is not to run: its gate is shut.
  bool shut(const Instruction& in) const { return in.only_if >= 0 && !sample.taken[in.only_if]; }

  // Sets score and decision of gate g, given its logit.
  void decide(int64_t g, GateKind kind, float z);
  // The same, given the score.
  void decide(int64_t g, float score);
  // Gate g lies where nothing runs: it is shut, whatever is asked for.
  void shut_gate(int64_t g) { sample.score[g] = 0, sample.taken[g] = 0; }

  // pooled = mean over the pixels, from the tiles' sums, in a fixed order
  void pool(int64_t buffer, int64_t begin, int64_t end) const;

  // Sets where a tile's weights, in blocks of output channels, lie.
  void set_weights(ConvTile& tile, const float* weight, int64_t in, int64_t out, int64_t taps) const {
    tile.weight = weight;
    tile.out_channels = static_cast<int>(out);
    tile.row_block = row_block(out);
    tile.tap_stride = tile.row_block;
    tile.block_stride = in * taps * tile.row_block;
  }

  // The weights of an instruction that has one layout.
  Packed packed(const Instruction& in) const {
    return {weights + in.weights, compiled.layouts[&in - plan.code.data()].front()};
  }

  const CompiledPlan& compiled;
  const Plan& plan;
  const MemoryMap& memory;
  const float* weights;
  float *own, *shared;   // the sample's memory, the thread's or team's
  Selection& selection;  // the thread's
  Sample sample;
  const Kernels& kernel = kernels();
  const Bfloat16Kernels* bfloat16 = bfloat16_kernels();
  std::vector<Live> live;  // per buffer; every thread of a team keeps its own
  int64_t macs = 0;

 private:
  static constexpr int kLongestSum = 1152;
  static constexpr int kCachedPixels = kFirstCacheFloats / 2 / kTile, kCachedPatches = kCachedPixels / 4;
  void walk(int stream);

  // Those of a tile's live channels, `step` floats apart where none is missing.
  void find_weights(ConvTile& tile, const float* all, int64_t step) {
    const int count = tile.live_count, begin = count ? tile.live[0] : 0;
    const bool in_order = count == 0 || tile.live[count - 1] - begin == count - 1;
    tile.weight = in_order ? all + begin * step : all;
    tile.weight_at = nullptr;
    if (in_order) return;
    weight_at_.resize(static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) weight_at_[static_cast<size_t>(i)] = static_cast<int>(tile.live[i] * step);
    tile.weight_at = weight_at_.data();
  }

  std::vector<int> weight_at_;
  std::vector<Team> teams_;
  std::vector<bool> walked_;
  int stream_ = 0;  // that is being walked; 0 for a thread alone
};

// Notes when a step of the plan began and ended, where that was asked for.
class Span {
 public:
  // layer: of a dense block, -1 for the instruction as a whole
  Span(const Worker& w, const Instruction& in, int64_t layer = -1) : w_(w), macs_(w.macs) {
    if (!w.sample.spans) return;
    span_ = w.sample.spans + (w.compiled.first_step[&in - w.plan.code.data()] + 1 + layer) * kSpanFields;
    span_[0] = now();
  }
  ~Span() {
    if (!span_) return;
    span_[1] = now();
    span_[2] = w_.macs - macs_;
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

 private:
  static int64_t now() { return std::chrono::nanoseconds(std::chrono::steady_clock::now().time_since_epoch()).count(); }

  const Worker& w_;
  int64_t macs_;
  int64_t* span_ = nullptr;
};

// The input of a 3x3 convolution: patches of `tiles` tiles with `halo` pixels more on either side,
// [patch][channel][stride]. A pixel near a patch's end is stored in its neighbour too, so that the
// convolution reads one contiguous patch. The halo is a row and, unless tiles end where rows do, the
// next row's first pixel.
struct Patches {
  Patches(const BufferSpec& map, int64_t channels) : Patches(map, channels, 1, 0) {}

  // Of a convolution for so many threads: half of an L1 cache at most; where the weights are more than a second cache
  // holds beside the map, a quarter of that, and the threads share the filters instead of the patches.
  static Patches of(const Instruction& in, const BufferSpec& map, int team_size) {
    const int64_t planes = in.taps == 9 && in.stride == 2 && !in.columns ? 4 : 1;
    const bool heavy = has_heavy_weights(in);
    return {map, channels_read(in) * planes, heavy ? 1 : team_size,
            heavy ? kSecondCacheFloats / 4 : kFirstCacheFloats / 2};
  }
  // The channels read, with the zero that makes an odd number of them whole pairs.
  static int64_t channels_read(const Instruction& in) {
    return in.flags & kBfloat16 ? round_up(in.in_channels, 2) : in.in_channels / in.groups;
  }
  static bool has_heavy_weights(const Instruction& in) {
    return in.out_mask < 0 &&
           in.in_channels / in.groups * in.taps * in.out_channels / in.groups > kSecondCacheFloats / 4;
  }

 private:
  // parts: that a map is cut into at least, where it has so many; floats: that a patch grows to
  Patches(const BufferSpec& map, int64_t channels, int parts, int64_t floats) {
    halo = static_cast<int>(kTile % map.width == 0 ? map.width : map.width + 1);
    const int least = static_cast<int>(ceil_div(halo, kTile));
    tiles = least;
    while ((tiles + 1) * parts <= map.tiles() && channels * ((tiles + 1) * kTile + 2 * halo) <= floats) ++tiles;
    tiles =
        std::max(least, static_cast<int>(ceil_div(map.tiles(), ceil_div(map.tiles(), tiles))));  // as even as can be
    count = static_cast<int>(ceil_div(map.tiles(), tiles));
    stride = round_up(tiles * kTile + 2 * halo, kAlign);
    size = channels * stride;
  }

 public:
  int halo, tiles, count;
  int64_t stride, size;
  int64_t floats(int team_size) const { return size * (team_size == 1 ? std::min(count, 3) : count); }
  float* at(float* base, int patch, bool ring) const { return base + (ring ? patch % 3 : patch) * size; }
};

// From row to row of a kernel that is unfolded: behind a tile a vector more is written.
constexpr int64_t kUnfoldedRow = kTile + kAlign;

// A 3x3 convolution's map in groups of 2x2 patches, and what one needs of a thread's memory, in floats.
struct WinogradSize {
  // A group's transformed inputs stay in the first cache, or its weights, where they are many, serve twice as many.
  WinogradSize(const BufferSpec& map, int64_t in, int64_t out) : all(winograd_patches(map.height, map.width)) {
    const int64_t most = 16 * in * out < kSecondCacheFloats ? kWinogradPatches / 2 : kWinogradPatches;
    patches = round_up(ceil_div(all, ceil_div(all, most)), kWinogradVector);
    groups = ceil_div(all, patches);
    position_stride = in * patches + kAlign;  // positions begin a line further on, or they share a set of the cache
    transformed = 4 * position_stride;
    partial = 4 * round_up(out, kWinogradRows) * patches;
  }
  int64_t all, patches, groups, position_stride, transformed, partial;
};

// Phases a team goes through for a stream, at most.
int64_t phase_count(const CompiledPlan& plan, int stream);

// What each op does, in a file of its name or that of its kind.
#define DSN_OP(id, name, traits) void run_##name(Worker&, const Instruction&);
#include "../plan/instructions.def"
void run_dense_block(Worker* samples, int count, const Instruction&);  // side by side
void run_winograd(Worker&, const Instruction&);                        // a conv2d

}  // namespace dsn::cpu
