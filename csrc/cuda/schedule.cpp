#include "cuda/schedule.h"

#include <algorithm>
#include <bit>

namespace dsn::cuda {
namespace {

constexpr int kPassDepth = 12;  // groups of a plain layer's pass
constexpr int kBlockPixels = kWarps * 2 * 16;

int place(LayerTile& t, int64_t bytes) {
  const int at = t.shared_bytes;
  t.shared_bytes = static_cast<int>(round_up(at + bytes, 16));
  return at;
}

void place_all(LayerTile& t, const Instruction& block, const Channels& in, Element element) {
  const bool add = block.merge == Merge::kAdd;
  const int64_t size = bytes_of(element), cells = int64_t{t.rows + 2} * (t.columns + 2);
  const int64_t conv = columns_of(add ? block.bottleneck : block.out_channels);
  const int64_t out = add ? columns_of(in.first) : conv;
  t.shared_bytes = kHeaderBytes;
  t.at_masks = place(t, ceil_div(std::max<int64_t>(block.layers, 1), 32) * 4);
  t.at_groups = place(t, round_up(in.groups(), 4) * 8);
  t.at_bias = place(t, (block.bottleneck ? columns_of(block.bottleneck) : 25 * conv) * 4);
  t.at_sums = place(t, kWarps * out * 4);
  t.depth = static_cast<int>(std::min<int64_t>(round_up(in.groups(), 4), kPassDepth));
  t.mid_stride = cell_stride(block.bottleneck ? columns_of(block.bottleneck) : t.depth * kGroup, element);
  t.at_mid = place(t, cells * t.mid_stride * size);
  t.wide_stride = add ? cell_stride(columns_of(block.bottleneck), element) : 0;
  t.at_wide = place(t, int64_t{t.rows} * t.columns * t.wide_stride * size);
  const int64_t conv_rows = has_exact_kernel(block) ? 9 * columns_of(block.bottleneck) / kGroup : 0;
  t.at_conv = place(t, conv_rows * (conv * kGroup + kConvPadding) * size);
  t.at_pooled = place(t, t.resident ? (in.groups() + groups_of(in.width)) * kGroup * 4 : 0);
  t.at_received = place(t, t.resident ? 2 * t.tiles() * conv * 4 : 0);
}

}  // namespace

LayerTile choose_tile(const BufferSpec& map, const Instruction& block, const Channels& in, Element element,
                      int64_t batch, int streams, const Machine& machine, bool resident) {
  // A pixel's work in each convolution, and what a block costs besides, in the same unit: multiply-accumulates.
  const double reduce = block.bottleneck ? static_cast<double>(in.groups() * kGroup * block.bottleneck) : 0;
  const double conv = 9.0 * static_cast<double>(block.bottleneck ? block.bottleneck : in.groups() * kGroup) *
                      static_cast<double>(columns_of(block.out_channels));
  const double fixed = kBlockCost * (reduce + conv);
  LayerTile best;
  double best_cost = 0;
  for (int64_t across = 1; across <= map.width; ++across) {
    const int64_t columns = ceil_div(map.width, across);
    if (ceil_div(map.width, columns) != across) continue;
    for (int64_t down = 1; down <= map.height; ++down) {
      const int64_t rows = ceil_div(map.height, down);
      if (ceil_div(map.height, rows) != down) continue;
      if (!block.bottleneck && rows * columns > kBlockPixels) continue;
      const bool fits_cluster =
          std::has_single_bit(static_cast<uint64_t>(down * across)) && down * across <= machine.cluster;
      if (resident && !fits_cluster) continue;
      LayerTile t;
      t.resident = resident;
      t.rows = static_cast<int>(rows), t.columns = static_cast<int>(columns);
      t.down = static_cast<int>(down), t.across = static_cast<int>(across);
      place_all(t, block, in, element);
      if (t.shared_bytes > machine.shared_bytes) continue;
      const int64_t own = rows * columns;
      const int64_t halo = std::min(rows + 2, map.height) * std::min(columns + 2, map.width);
      auto passes = [](int64_t pixels) { return static_cast<double>(round_up(pixels, kBlockPixels)); };
      const double alone = passes(halo) * reduce + passes(own) * conv;
      const double shared = static_cast<double>(halo) * reduce + static_cast<double>(own) * conv;
      // Half a wave more than fits evenly: how many blocks there are depends on the gates.
      const double each = static_cast<double>(batch * streams * t.tiles()) / machine.multiprocessors + 0.5;
      const double cost = std::max(alone + fixed, each * (shared + fixed / 4));
      if (best.rows == 0 || cost < best_cost) best = t, best_cost = cost;
    }
    if (best.rows) break;  // narrower tiles only where whole rows do not fit
  }
  return best;
}

int64_t Schedule::reserve(int64_t bytes) {
  const int64_t at = workspace_bytes;
  workspace_bytes = round_up(at + bytes, 256);
  return at;
}

void Schedule::place_states(const Plan& plan, int64_t batch) {
  states.resize(plan.buffers.size());
  for (size_t i = 0; i < plan.code.size(); ++i) {
    const Instruction& in = plan.code[i];
    if (has(in.op, kReadsPooled)) states[in.src].pooled_at = 0;
    if (in.factor >= 0) states[in.factor].pooled_at = 0;
    if (in.op == Op::kFullyConnected) states[in.dst].pooled_at = 0;
    if (in.dst < 0) continue;
    State& state = states[in.dst];
    if (in.op == Op::kDenseBlock) {
      state.block = static_cast<int>(i);
      if (in.merge == Merge::kConcat) state.channels = {in.in_channels, in.layers, in.out_channels};
    } else if (has(in.op, kPlain)) {
      state.channels.first = plan.buffers[in.dst].channels;
    } else {
      state.channels.first = in.op == Op::kLoad ? in.in_channels : in.out_channels;
    }
  }
  for (State& state : states) {
    if (state.block >= 0) {
      state.pooled_at = 0;
      state.words_at = reserve(plan.code[state.block].layers * word_count * 8);
    }
    if (state.pooled_at >= 0) state.pooled_at = reserve(batch * state.channels.groups() * kGroup * 4);
  }
}

Schedule::Schedule(const char* op, const Plan& plan, Element element, int64_t batch, const Machine& machine) {
  const auto streams = static_cast<int>(plan.streams.size());
  word_count = ceil_div(batch, 64);
  multiprocessors = machine.multiprocessors;
  place_states(plan, batch);
  for (const Instruction& in : plan.code) {
    arrived_at.emplace_back();
    const int64_t launches = has(in.op, kLayered) ? in.layers : 1;
    for (int64_t l = 0; l < launches; ++l) arrived_at.back().push_back(reserve(batch * 4));
  }
  if (std::any_of(plan.code.begin(), plan.code.end(),
                  [](const Instruction& in) { return in.op == Op::kGate || in.op == Op::kDecide; })) {
    gate_words_at = reserve(plan.gates * word_count * 8);
    hidden_at = reserve(batch * 2 * gate::kEmbedding * 4);
  }
  zero_bytes = workspace_bytes;
  place_lists(op, plan, batch);
  stages = find_stage_runs(plan, element, batch, machine);
  chains = chain_gates(plan, stages);
  if (chains.empty() && !stages.empty()) stages.clear(), chains = chain_gates(plan, stages);
  gradual = find_gradual_runs(plan, element, batch, machine);
  bottlenecks = find_bottleneck_runs(plan, element, batch, machine);

  std::vector<int64_t> partial(plan.streams.size(), 0);
  for (const Instruction& in : plan.code) {
    layouts.emplace_back();
    tiles.emplace_back();
    int64_t written = 0, cuts = 1;  // channels and tiles of a launch that sums channels
    const BufferSpec* map = in.dst >= 0 ? &plan.buffers[in.dst] : nullptr;
    switch (in.op) {
      case Op::kLoad:
        written = in.in_channels, cuts = ceil_div(map->pixels(), kStripPixels);
        break;
      case Op::kStem:
        layouts.back().push_back(packed_stem::layout(in.in_channels, in.out_channels, element));
        written = in.out_channels, cuts = ceil_div(map->pixels(), kPointwisePixels);
        break;
      case Op::kTransition:
        layouts.back().push_back(packed_transition::layout(
            states[in.src].channels, in.guide >= 0 ? states[in.guide].channels : Channels{}, in.out_channels, element));
        written = in.out_channels, cuts = ceil_div(map->pixels(), kPointwisePixels);
        break;
      case Op::kHead:
        layouts.back().push_back(
            packed_head::layout(states[in.src].channels, in.out_channels, inputs[layouts.size() - 1].list >= 0));
        break;
      case Op::kPathHead:
        layouts.back().push_back(packed_path_head::layout(states[in.src].channels, in.out_channels, in.layers));
        break;
      case Op::kDenseBlock: {
        const State& state = states[in.dst];
        layouts.back().push_back(packed_gates::layout(state.channels, in.layers));
        LayerTile resident;
        if (machine.cluster > 1 && has_exact_kernel(in) && in.layers <= kResidentLayers)
          resident =
              choose_tile(*map, in, channels_before(state, in.layers - 1), element, batch, streams, machine, true);
        for (int64_t l = 0; l < in.layers; ++l) {
          const Channels before = channels_before(state, l);
          layouts.back().push_back(packed_layer::layout(before, in.out_channels, in.bottleneck, in.merge, element));
          tiles.back().push_back(resident.rows ? resident
                                               : choose_tile(*map, in, before, element, batch, streams, machine));
          const LayerTile& tile = tiles.back().back();
          check(tile.rows > 0, op, ": a layer of ", before.first, " channels does not fit the ", machine.shared_bytes,
                " bytes of a block's shared memory");
          cuts = std::max<int64_t>(cuts, tile.tiles());
        }
        written = in.merge == Merge::kAdd ? in.in_channels : in.out_channels;
        break;
      }
      case Op::kConv2d: {
        layouts.back().push_back(packed_conv2d::layout(in.src_offset, inputs_of(in), outputs_of(in), in.taps, in.groups,
                                                       in.flags & kNormalise, has_chosen(in), has_constants(in),
                                                       element));
        ConvTile& tile = convs[layouts.size() - 1].tile;
        tile = choose_conv_tile(*map, in, element, batch, machine);
        check(tile.rows > 0, op, ": a convolution of ", in.in_channels, " channels does not fit the ",
              machine.shared_bytes, " bytes of a block's shared memory");
        if (in.flags & kPool) written = in.out_channels, cuts = tile.tiles();
        const int64_t items = batch * tile.blocks(), blocks = int64_t{multiprocessors} * tile.resident;
        const auto index = static_cast<int64_t>(layouts.size()) - 1;
        const bool walked = std::any_of(bottlenecks.begin(), bottlenecks.end(),
                                        [&](const BottleneckRun& run) { return run.holds(index); });
        if (has_chosen(in) && in.only_if < 0 && items > blocks && !walked)
          convs[layouts.size() - 1].walk = static_cast<int>(ceil_div(items, blocks));
        break;
      }
      case Op::kSubsample:
        written = in.out_channels, cuts = ceil_div(map->pixels(), kStripPixels);
        break;
      case Op::kPoolSums:
        map = &plan.buffers[in.src];
        written = in.in_channels, cuts = ceil_div(map->pixels(), kStripPixels);
        break;
      case Op::kGate:
        if (in.gate == GateKind::kRecurrent)
          weight_bytes = std::max(weight_bytes, in.shared + wide_layout(recurrence::layout()).size);
        break;
      default:
        break;
    }
    if (const Layout listed = listed::layout(in); listed.count) layouts.back().push_back(wide_layout(listed));
    if (written) {
      int64_t& most = partial[plan.stream_of[in.home()]];
      most = std::max(most, batch * cuts * groups_of(written) * kGroup * 4);
    }
    int64_t end = in.weights;
    for (const PackedLayout& l : layouts.back()) end += l.size;
    weight_bytes = std::max(weight_bytes, end);
  }
  place_groups(plan, element, batch, machine);
  for (int64_t bytes : partial) partial_at.push_back(reserve(bytes));
  for (size_t b = 0; b < states.size(); ++b) {
    State& s = states[b];
    s.sample_stride = s.channels.groups() * kGroup * plan.buffers[b].pixels();
    if (s.block >= 0 && plan.code[s.block].merge == Merge::kAdd) {
      s.copy_stride = s.sample_stride;
      s.sample_stride *= 2;
    }
    s.at = reserve(batch * s.sample_stride * bytes_of(element));
  }
}

}  // namespace dsn::cuda
