// The launches of a plan for one element type.
#pragma once

#include "cuda/conv2d.cuh"
#include "cuda/filter_lists.cuh"
#include "cuda/gradual_layer.cuh"
#include "cuda/group_by_pattern.cuh"
#include "cuda/head.cuh"
#include "cuda/image.cuh"
#include "cuda/network.h"
#include "cuda/pointwise.cuh"
#include "cuda/resample.cuh"
#include "cuda/resident_block.cuh"
#include "cuda/resident_bottleneck.cuh"
#include "cuda/resident_stage.cuh"
#include "cuda/unit_gate.cuh"

namespace dsn::cuda {

template <class T>
class NetworkRun {
 public:
  NetworkRun(const Plan& plan, const Schedule& schedule, const NetworkCall& call, Streams& streams)
      : plan_(plan), s_(schedule), call_(call), streams_(streams) {}

  // Streams take turns, a launch each, so that the first launches of one do not queue up behind all of another's. A
  // stream begins behind what the caller's holds, and what a guide leads to behind the guide's last launch.
  cudaError_t run() {
    find_turns();
    const int streams = static_cast<int>(turns_.size());
    std::vector<size_t> next(turns_.size(), 0);
    joined_.assign(turns_.size(), true);
    int begin = 0;
    keep(streams_.open(streams));
    if (error_ != cudaSuccess) return error_;
    filter_lists(s_.listed_first, call_.forced);
    if (s_.grouped) group_samples();
    if (streams > 1) keep(streams_.mark(0, &begin));
    for (int s = 1; s < streams && error_ == cudaSuccess; ++s) keep(streams_.wait(s, begin));
    for (bool left = true; left && error_ == cudaSuccess;) {
      left = false;
      for (stream_ = 0; stream_ < streams && error_ == cudaSuccess; ++stream_) {
        if (next[stream_] == turns_[stream_].size()) continue;
        left = true;
        if (take_turn(turns_[stream_][next[stream_]])) ++next[stream_];
      }
    }
    for (int s = 1; s < streams; ++s) {  // after an error too: what was started uses the call's memory
      int end = 0;
      const int status = streams_.mark(s, &end);
      keep(status ? status : streams_.wait(0, end));
    }
    return error_;
  }

 private:
  static constexpr int kNotYet = -1, kNobodyAsks = -2;

  // A launch: an instruction, or one layer of a dense block.
  struct Turn {
    int index;
    int64_t layer;
  };

  void find_turns() {
    turns_.resize(s_.partial_at.size());
    std::vector<int> writer(plan_.buffers.size(), -1);
    finished_.assign(plan_.code.size(), kNobodyAsks);
    follows_.assign(plan_.code.size(), -1);
    for (int i = 0; i < static_cast<int>(plan_.code.size()); ++i) {
      const Instruction& in = plan_.code[i];
      const int stream = plan_.stream_of[in.home()];
      if (in.guide >= 0 && plan_.stream_of[in.guide] != stream) {
        follows_[i] = writer[in.guide];
        finished_[writer[in.guide]] = kNotYet;
      }
      if (in.dst >= 0) writer[in.dst] = i;
      for (int64_t l = 0; l < launches(i); ++l) turns_[stream].push_back({i, l});
    }
  }

  // False if the launch must wait for one of another stream that is not started yet.
  bool take_turn(const Turn& turn) {
    const Instruction& in = plan_.code[turn.index];
    const int before = follows_[turn.index];
    if (before >= 0) {
      if (finished_[before] == kNotYet) return false;
      keep(streams_.wait(stream_, finished_[before]));
      joined_[stream_] = true;
    }
    step(turn.index, in, turn.layer);
    filter_lists(s_.listed_behind[turn.index], call_.taken);
    if (turn.layer + 1 == launches(turn.index) && finished_[turn.index] == kNotYet)
      keep(streams_.mark(stream_, &finished_[turn.index]));
    return true;
  }

  bool is_resident(int index) const { return !s_.tiles[index].empty() && s_.tiles[index][0].resident; }
  int64_t launches(int index) const {
    return has(plan_.code[index].op, kLayered) && !is_resident(index) ? plan_.code[index].layers : 1;
  }

  void keep(int status) {
    if (error_ == cudaSuccess) error_ = static_cast<cudaError_t>(status);
  }

  // Whether one of these runs holds an instruction; starts the launch that does them all at its first.
  template <class Run>
  bool walks(const std::vector<Run>& runs, int index, void (NetworkRun::*start)(const Run&)) {
    for (const Run& run : runs) {
      if (!run.holds(index)) continue;
      if (index == run.begin) (this->*start)(run);
      return true;
    }
    return false;
  }

  void step(int index, const Instruction& in, int64_t l) {
    if (walks(s_.gradual, index, &NetworkRun::gradual_layer) || walks(s_.stages, index, &NetworkRun::resident_stage) ||
        walks(s_.bottlenecks, index, &NetworkRun::resident_bottleneck))
      return;
    switch (in.op) {
      case Op::kLoad:
        return load(index, in);
      case Op::kStem:
        return stem(index, in);
      case Op::kDenseBlock:
        return is_resident(index) ? resident_block(index, in) : layer(index, in, l);
      case Op::kTransition:
        return transition(index, in);
      case Op::kHead:
      case Op::kPathHead:
        return head(index, in);
      case Op::kStore:
        return store(in);
      case Op::kConv2d:
        return conv2d(index, in);
      case Op::kGate:
        return gate(index, in);
      case Op::kDecide:
        return decide(in);
      case Op::kLinear:
      case Op::kFullyConnected:
        return linear(index, in);
      case Op::kPointwise:
      case Op::kUpsample:
        return pointwise(index, in);
      default:  // what goes over a map channel by channel
        return resample(index, in);
    }
  }

  // In network_planned.cuh: what residual, filter-selecting and gradually updated networks are made of.
  void filter_lists(const Making& making, const uint8_t* masks);
  void group_samples();
  void conv2d(int index, const Instruction& in);
  void resample(int index, const Instruction& in);
  void pointwise(int index, const Instruction& in);
  UnitGates unit_gates(const std::vector<ChainedGate>& chain) const;
  void gate(int index, const Instruction& in);
  void decide(const Instruction& in);
  void linear(int index, const Instruction& in);
  void gradual_layer(const GradualRun& run);
  void resident_stage(const StageRun& run);
  void resident_bottleneck(const BottleneckRun& run);
  Chosen chosen(const Listed& listed) const;
  // [B][gates] from the first on that choose an instruction's channels: all are decided by the plan, or none.
  const uint8_t* mask_of(const Instruction& in) const {
    return (s_.decided_by[in.out_mask] >= 0 ? call_.taken : call_.forced) + in.out_mask;
  }
  Map map_of(int64_t buffer) const;
  float* pooled(int64_t buffer) const;
  int32_t positions(int64_t buffer) const;
  int64_t* order() const { return reinterpret_cast<int64_t*>(call_.workspace + s_.order_at); }
  int32_t* alike() const { return reinterpret_cast<int32_t*>(call_.workspace + s_.alike_at); }
  unsigned long long* gate_words(int64_t gate) const {
    return reinterpret_cast<unsigned long long*>(call_.workspace + s_.gate_words_at) + gate * s_.word_count;
  }

  template <class U>
  const U* weights(int index, int64_t layout, int field) const {
    const std::vector<PackedLayout>& layouts = s_.layouts[index];
    int64_t at = plan_.code[index].weights;
    for (int64_t l = 0; l < layout; ++l) at += layouts[l].size;
    return reinterpret_cast<const U*>(call_.weights + at + layouts[layout].fields[field].offset);
  }

  // Where a field begins, in units of 16 bytes from the call's first weight.
  int32_t place(int index, int field) const {
    return static_cast<int32_t>((plan_.code[index].weights + s_.layouts[index][0].fields[field].offset) / 16);
  }

  Samples every_sample() const { return {nullptr, 0, static_cast<int32_t>(call_.batch), call_.count}; }

  Samples samples_of(int64_t only_if) const {
    if (only_if < 0) return every_sample();
    return {gate_words(only_if), static_cast<int32_t>(s_.word_count), static_cast<int32_t>(call_.batch), nullptr};
  }

  const uint8_t* taken_of(const State& state) const {
    return call_.taken + (state.block < 0 ? 0 : plan_.code[state.block].first_gate);
  }

  // A buffer as a consumer after `layers` layers of its block reads it.
  Source source(int64_t buffer, int64_t layers) const {
    const State& state = s_.states[buffer];
    const BufferSpec& map = plan_.buffers[buffer];
    Source source{};
    source.data = call_.workspace + state.at;
    source.sample_stride = state.sample_stride;
    source.copy_stride = state.copy_stride;
    source.taken = taken_of(state);
    source.gates = plan_.gates;
    source.pixels = static_cast<int32_t>(map.pixels());
    source.width = static_cast<int32_t>(map.width);
    source.height = static_cast<int32_t>(map.height);
    source.first_groups = static_cast<int32_t>(groups_of(state.channels.first));
    source.first_channels = static_cast<int32_t>(state.channels.first);
    source.slice_groups = static_cast<int32_t>(groups_of(state.channels.width));
    source.slice_channels = static_cast<int32_t>(state.channels.width);
    source.slices = static_cast<int32_t>(layers);
    return source;
  }
  Source source(int64_t buffer) const {
    const State& state = s_.states[buffer];
    return source(buffer, state.block < 0 ? 0 : plan_.code[state.block].layers);
  }

  // What follows when channels [first, first + channels) of a buffer are written by launch `launch` of an instruction
  // and the next gate of its dense block, if it has one, is `next`.
  Pooling pooling(int index, int64_t launch, int64_t buffer, int64_t first, int64_t channels, int64_t tiles,
                  int64_t blocks, int64_t next) const {
    const State& state = s_.states[buffer];
    Pooling p{};
    p.macs = call_.macs;
    p.tiles = static_cast<int32_t>(tiles);
    p.blocks = static_cast<int32_t>(blocks);
    if (state.pooled_at < 0 || (state.block >= 0 && next >= plan_.code[state.block].layers)) return p;
    p.partial = reinterpret_cast<float*>(call_.workspace + s_.partial_at[plan_.stream_of[buffer]]);
    p.pooled = reinterpret_cast<float*>(call_.workspace + state.pooled_at);
    p.arrived = reinterpret_cast<unsigned*>(call_.workspace + s_.arrived_at[index][launch]);
    p.channels = static_cast<int32_t>(groups_of(channels) * kGroup);
    p.first_channel = static_cast<int32_t>(first);
    p.pixels = static_cast<float>(plan_.buffers[buffer].pixels());
    Gates& g = p.gates;
    g.positions = static_cast<int32_t>(state.channels.groups() * kGroup);
    if (state.block < 0) return p;
    const Instruction& block = plan_.code[state.block];
    g.weight = weights<float>(state.block, 0, packed_gates::kWeight);
    g.bias = weights<float>(state.block, 0, packed_gates::kBias);
    g.threshold = call_.thresholds + block.first_gate;
    const bool decides = block.gate != GateKind::kNone;  // a layer without a gate runs whatever is forced
    g.forced = call_.forced && decides ? call_.forced + block.first_gate : nullptr;
    g.taken = call_.taken + block.first_gate;
    g.score = call_.score + block.first_gate;
    g.words = words(state, 0);
    g.gates = plan_.gates;
    g.word_count = static_cast<int32_t>(s_.word_count);
    // A resident block decides its own.
    g.layers = static_cast<int32_t>(is_resident(state.block) && index != state.block ? 0 : block.layers);
    g.first_layer = static_cast<int32_t>(next);
    g.first_groups = static_cast<int32_t>(groups_of(state.channels.first));
    g.slice_groups = static_cast<int32_t>(groups_of(state.channels.width));
    g.first_channels = static_cast<int32_t>(state.channels.first);
    g.slice_channels = static_cast<int32_t>(state.channels.width);
    g.kind = block.gate;
    return p;
  }

  unsigned long long* words(const State& state, int64_t layer) const {
    return reinterpret_cast<unsigned long long*>(call_.workspace + state.words_at) + layer * s_.word_count;
  }

  template <auto kKernel, class Params>
  void start(int64_t blocks, int64_t across, int threads, int64_t shared_bytes, const Params& params, int cluster = 1) {
    if (error_ != cudaSuccess) return;
    LaunchConfig config;
    config.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(across));
    config.block = dim3(static_cast<unsigned>(threads));
    config.cluster = dim3(static_cast<unsigned>(cluster));
    config.shared_bytes = static_cast<int>(shared_bytes);
    config.dependent = !joined_[stream_];  // a kernel behind an event is started in full
    joined_[stream_] = false;
    config.stream = streams_.get(stream_);
    error_ = launch<kKernel>(config, params);
  }

  template <class Params>
  Params from_image(const State& state) const {
    Params p{};
    p.samples = every_sample();
    p.image = call_.image;
    p.image_is_float = call_.image_is_float;
    p.out = call_.workspace + state.at;
    p.out_stride = state.sample_stride;
    p.pixel_stride = static_cast<int32_t>(groups_of(state.channels.first) * kGroup);
    return p;
  }

  void load(int index, const Instruction& in) {
    const BufferSpec& map = plan_.buffers[in.dst];
    const State& state = s_.states[in.dst];
    const int64_t tiles = ceil_div(map.pixels(), kStripPixels);
    LoadParams p = from_image<LoadParams>(state);
    p.pooling = pooling(index, 0, in.dst, 0, in.in_channels, tiles, tiles, 0);
    p.channels = static_cast<int32_t>(in.in_channels);
    p.pixels = static_cast<int32_t>(map.pixels());
    p.image_stride = plan_.image.values();
    p.first = in.src_offset;
    start<load_kernel<T>>(call_.batch * tiles, 1, kThreads, kHeaderBytes + 2 * groups_of(in.in_channels) * kGroup * 4,
                          p);
  }

  void stem(int index, const Instruction& in) {
    const BufferSpec& map = plan_.buffers[in.dst];
    const State& state = s_.states[in.dst];
    const int64_t tiles = ceil_div(map.pixels(), kPointwisePixels), columns = columns_of(in.out_channels);
    const int64_t across = ceil_div(columns, kPointwiseTiles * 8);
    StemParams p = from_image<StemParams>(state);
    p.pooling = pooling(index, 0, in.dst, 0, in.out_channels, tiles, tiles * across, 0);
    p.weight = weights<T>(index, 0, packed_stem::kWeight);
    p.in_channels = static_cast<int32_t>(in.in_channels);
    p.height = static_cast<int32_t>(map.height);
    p.width = static_cast<int32_t>(map.width);
    p.depth_groups = static_cast<int32_t>(round_up(in.in_channels * 9, kStep) / kGroup);
    p.columns = static_cast<int32_t>(columns);
    p.out_channels = static_cast<int32_t>(in.out_channels);
    p.out_groups = static_cast<int32_t>(groups_of(in.out_channels));
    start<stem_kernel<T>>(call_.batch * tiles, across, kPointwiseThreads, kHeaderBytes + kPointwiseSums, p);
  }

  void transition(int index, const Instruction& in) {
    const BufferSpec& map = plan_.buffers[in.dst];
    const State& state = s_.states[in.dst];
    const int64_t tiles = ceil_div(map.pixels(), kPointwisePixels), columns = columns_of(in.out_channels);
    const int64_t across = ceil_div(columns, kPointwiseTiles * 8);
    TransitionParams p{};
    p.samples = every_sample();
    p.source = source(in.src);
    if (in.guide >= 0) p.guide = source(in.guide);
    p.pooling = pooling(index, 0, in.dst, 0, in.out_channels, tiles, tiles * across, 0);
    p.out = call_.workspace + state.at;
    p.out_stride = state.sample_stride;
    p.norm = weights<float>(index, 0, packed_transition::kNorm);
    p.weight = weights<T>(index, 0, packed_transition::kWeight);
    p.constants = weights<float>(index, 0, packed_transition::kConstants);
    p.source_groups = static_cast<int32_t>(s_.states[in.src].channels.groups());
    p.columns = static_cast<int32_t>(columns);
    p.out_channels = static_cast<int32_t>(in.out_channels);
    p.out_groups = static_cast<int32_t>(groups_of(in.out_channels));
    p.out_width = static_cast<int32_t>(map.width);
    p.out_pixels = static_cast<int32_t>(map.pixels());
    const int64_t guide_groups = in.guide >= 0 ? s_.states[in.guide].channels.groups() : 0;
    int64_t shared = kHeaderBytes;
    auto place = [&](int64_t bytes) {
      return static_cast<int32_t>(std::exchange(shared, round_up(shared + bytes, 16)));
    };
    p.at_masks = place((ceil_div(p.source.slices, 32) + ceil_div(p.guide.slices, 32)) * 4);
    p.at_groups = place(round_up(p.source_groups, 4) * 8);
    p.at_guide_groups = place(round_up(guide_groups, 4) * 8);
    p.at_bias = place(kPointwiseTiles * 8 * 4);
    p.at_sums = place(kPointwiseSums);
    start<transition_kernel<T>>(call_.batch * tiles, across, kPointwiseThreads, shared, p);
  }

  DenseLayerParams layer_params(int index, const Instruction& in, int64_t l) const {
    const State& state = s_.states[in.dst];
    const LayerTile& tile = s_.tiles[index][l];
    const Channels before = channels_before(state, l);
    const bool add = in.merge == Merge::kAdd;
    const int64_t layout = 1 + l;
    DenseLayerParams p{};
    p.samples = {words(state, l), static_cast<int32_t>(s_.word_count), static_cast<int32_t>(call_.batch), nullptr};
    p.source = source(in.dst, l);
    p.pooling = pooling(index, l, in.dst, add ? 0 : before.groups() * kGroup, add ? in.in_channels : in.out_channels,
                        tile.tiles(), tile.tiles(), l + 1);
    p.out = call_.workspace + state.at;
    p.layer = static_cast<int32_t>(l);
    p.norm = weights<T>(index, layout, packed_layer::kNorm);
    p.reduce = weights<T>(index, layout, packed_layer::kReduce);
    p.reduce_bias = weights<float>(index, layout, packed_layer::kReduceBias);
    p.constants = weights<float>(index, layout, packed_layer::kConstants);
    p.conv = weights<T>(index, layout, packed_layer::kConv);
    p.conv_bias = weights<float>(index, layout, packed_layer::kConvBias);
    p.expand = weights<T>(index, layout, packed_layer::kExpand);
    p.total_groups = static_cast<int32_t>(before.groups());
    p.bottleneck = static_cast<int32_t>(in.bottleneck);
    p.growth = static_cast<int32_t>(in.out_channels);
    p.reduce_columns = static_cast<int32_t>(columns_of(in.bottleneck));
    p.conv_columns = static_cast<int32_t>(columns_of(add ? in.bottleneck : in.out_channels));
    p.expand_columns = static_cast<int32_t>(add ? columns_of(in.in_channels) : 0);
    p.tile_rows = tile.rows;
    p.tile_columns = tile.columns;
    p.tiles_across = tile.across;
    p.depth = tile.depth;
    p.mid_stride = tile.mid_stride;
    p.wide_stride = tile.wide_stride;
    p.at_masks = tile.at_masks;
    p.at_groups = tile.at_groups;
    p.at_bias = tile.at_bias;
    p.at_sums = tile.at_sums;
    p.at_mid = tile.at_mid;
    p.at_wide = tile.at_wide;
    p.at_conv = tile.at_conv;
    return p;
  }

  void layer(int index, const Instruction& in, int64_t l) {
    const LayerTile& tile = s_.tiles[index][l];
    const DenseLayerParams p = layer_params(index, in, l);
    const int64_t blocks = call_.batch * tile.tiles();
    if (in.merge == Merge::kAdd)
      start<residual_layer_kernel<T, 8>>(blocks, 1, kThreads, tile.shared_bytes, p);
    else if (!in.bottleneck)
      start<plain_layer_kernel<T>>(blocks, 1, kThreads, tile.shared_bytes, p);
    else if (has_exact_kernel(in))
      start<bottleneck_layer_kernel<T, 6, 2, true>>(blocks, 1, kThreads, tile.shared_bytes, p);
    else
      start<bottleneck_layer_kernel<T, 8, 4, false>>(blocks, 1, kThreads, tile.shared_bytes, p);
  }

  void resident_block(int index, const Instruction& in) {
    const LayerTile& tile = s_.tiles[index][0];
    ResidentBlockParams p{};
    p.layer = layer_params(index, in, 0);
    p.layer.samples = every_sample();
    p.layer.pooling = pooling(index, 0, in.dst, 0, in.out_channels, tile.tiles(), tile.tiles(), 0);
    p.weights = call_.weights;
    auto at = [&](int64_t l, int field) {
      return static_cast<int32_t>(weights<unsigned char>(index, 1 + l, field) - call_.weights);
    };
    for (int64_t l = 0; l < in.layers; ++l)
      p.layers[l] = {at(l, packed_layer::kNorm), at(l, packed_layer::kReduce), at(l, packed_layer::kReduceBias),
                     at(l, packed_layer::kConstants), at(l, packed_layer::kConv)};
    p.at_pooled = tile.at_pooled;
    p.at_received = tile.at_received;
    start<resident_block_kernel<T, 6, 2>>(call_.batch * tile.tiles(), 1, kThreads, tile.shared_bytes, p, tile.tiles());
  }

  void head(int index, const Instruction& in) {
    HeadParams p{};
    p.samples = every_sample();
    p.source = source(in.src);
    p.inputs = chosen(s_.inputs[index]);
    p.macs = call_.macs;
    p.norm = weights<float>(index, 0, packed_head::kNorm);
    p.weight = weights<float>(index, 0, packed_head::kWeight);
    p.bias = weights<float>(index, 0, packed_head::kBias);
    if (in.op == Op::kPathHead) {
      p.path = weights<float>(index, 0, packed_path_head::kPath);
      p.path_bias = weights<float>(index, 0, packed_path_head::kPathBias);
      p.taken = call_.taken + in.first_gate;
      p.path_gates = static_cast<int32_t>(in.layers);
    } else {
      p.constants = weights<float>(index, 0, packed_head::kConstants);
    }
    p.gates = plan_.gates;
    p.logits = call_.logits + in.out_offset;
    p.row = plan_.logits;
    p.classes = static_cast<int32_t>(in.out_channels);
    p.channels = static_cast<int32_t>(in.in_channels);
    p.total_groups = static_cast<int32_t>(s_.states[in.src].channels.groups());
    int64_t shared = kHeaderBytes;
    auto place = [&](int64_t bytes) {
      return static_cast<int32_t>(std::exchange(shared, round_up(shared + bytes, 16)));
    };
    p.at_masks = place(ceil_div(std::max(p.source.slices, p.channels), 32) * 4);
    p.at_groups = place(round_up(p.total_groups, 4) * 8);
    p.at_features = place(round_up(p.total_groups, 4) * kGroup * 4);
    start<head_kernel<T>>(call_.batch, 1, kThreads, shared, p);
  }

  void store(const Instruction& in) {
    StoreParams p{};
    p.samples = every_sample();
    p.source = source(in.src);
    p.map = call_.map;
    p.map_is_float = call_.image_is_float;
    p.map_stride = plan_.map.values();
    p.first = in.out_offset;
    p.channels = static_cast<int32_t>(in.in_channels);
    start<store_kernel<T>>(call_.batch * ceil_div(p.source.pixels, kStripPixels), 1, kThreads, 0, p);
  }

  static constexpr int kPointwiseSums = kPointwiseThreads / 32 * kPointwiseTiles * 8 * 4;  // bytes

  const Plan& plan_;
  const Schedule& s_;
  const NetworkCall& call_;
  Streams& streams_;
  std::vector<std::vector<Turn>> turns_;  // of each stream
  std::vector<int> follows_;              // of each instruction: one of another stream that it waits for, -1 for none
  std::vector<int> finished_;             // of each instruction: the event behind its last launch
  std::vector<bool> joined_;              // of each stream: its next launch follows another stream or none
  int stream_ = 0;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace dsn::cuda

#include "cuda/network_planned.cuh"

namespace dsn::cuda {

template <class T>
int run_network_as(const Plan& plan, const Schedule& schedule, const NetworkCall& call, Streams& streams) {
  return NetworkRun<T>(plan, schedule, call, streams).run();
}

}  // namespace dsn::cuda
