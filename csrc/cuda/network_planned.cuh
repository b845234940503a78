// The launches of what residual, filter-selecting and gradually updated networks are made of.
#pragma once

#include "cuda/network.cuh"

namespace dsn::cuda {

template <class T>
Map NetworkRun<T>::map_of(int64_t buffer) const {
  const State& state = s_.states[buffer];
  const BufferSpec& map = plan_.buffers[buffer];
  return {call_.workspace + state.at, state.sample_stride, static_cast<int32_t>(state.channels.groups() * kGroup),
          static_cast<int32_t>(map.width), static_cast<int32_t>(map.height)};
}

// A buffer's pooled vector, [B][positions].
template <class T>
float* NetworkRun<T>::pooled(int64_t buffer) const {
  return reinterpret_cast<float*>(call_.workspace + s_.states[buffer].pooled_at);
}
template <class T>
int32_t NetworkRun<T>::positions(int64_t buffer) const {
  return static_cast<int32_t>(s_.states[buffer].channels.groups() * kGroup);
}

// Makes lists of what masks [B][gates] choose; the first that the call forces are what it took, too.
template <class T>
void NetworkRun<T>::filter_lists(const Making& making, const uint8_t* masks) {
  for (size_t first = 0; first < making.size();) {
    FilterListsParams p{};
    p.samples = every_sample();
    p.masks = masks;
    if (first == 0 && masks != call_.taken) p.taken = call_.taken, p.score = call_.score;
    p.lists = reinterpret_cast<uint16_t*>(call_.workspace + s_.lists_at);
    p.counts = reinterpret_cast<int32_t*>(call_.workspace + s_.counts_at);
    p.gates = static_cast<int32_t>(plan_.gates);
    p.list_stride = static_cast<int32_t>(s_.list_stride);
    p.count_stride = static_cast<int32_t>(s_.range_count);
    size_t ranges = 0;
    for (; first < making.size() && p.count < kListsAtOnce; ++first) {
      const ChannelList& list = s_.lists[static_cast<size_t>(making[first].list)];
      const int32_t made = making[first].ranges;
      if (ranges + static_cast<size_t>(made) > kRangesAtOnce) break;
      p.list[p.count++] = {static_cast<int32_t>(list.at), static_cast<int32_t>(list.first_range),
                           static_cast<int32_t>(ranges), made};
      std::copy_n(list.ranges.begin(), made, p.range + ranges);
      ranges += static_cast<size_t>(made);
    }
    start<filter_lists_kernel<kThreads>>(call_.batch, 1, kThreads, 0, p);
  }
}

template <class T>
void NetworkRun<T>::group_samples() {
  const GroupParams p{call_.forced, alike(), order(), static_cast<int32_t>(call_.batch),
                      static_cast<int32_t>(plan_.gates)};
  start<first_equal_kernel>(ceil_div(call_.batch, kThreads), 1, kThreads, 0, p);
  start<place_kernel>(ceil_div(call_.batch, kThreads), 1, kThreads, kGroupBytes, p);
}

template <class T>
Chosen NetworkRun<T>::chosen(const Listed& listed) const {
  if (listed.list < 0) return {};
  const ChannelList& list = s_.lists[static_cast<size_t>(listed.list)];
  return {reinterpret_cast<const uint16_t*>(call_.workspace + s_.lists_at) + list.at,
          reinterpret_cast<const int32_t*>(call_.workspace + s_.counts_at) + list.first_range + listed.ranges - 1,
          static_cast<int32_t>(s_.list_stride), static_cast<int32_t>(s_.range_count)};
}

template <class T>
void NetworkRun<T>::conv2d(int index, const Instruction& in) {
  const ConvStep& step = s_.convs[index];
  const ConvTile& t = step.tile;
  const Kernel kernel(in);
  const int64_t outputs = outputs_of(in), end = in.out_offset + in.out_channels;
  const bool adds = in.flags & kAccumulate, whole_groups = !adds && in.out_offset == 0 && in.groups == 1;
  Conv2dParams p{};
  p.samples = samples_of(in.only_if);
  p.source = map_of(in.src);
  p.out = map_of(in.dst);
  if (in.flags & kPool) {
    p.pooling = pooling(index, 0, in.dst, in.out_offset, in.out_channels, t.tiles(), t.blocks() * in.groups, 0);
    if (!s_.chains.empty()) p.gates = unit_gates(s_.chains[index]);
  } else {
    p.pooling.macs = call_.macs;
    p.pooling.tiles = t.tiles();
  }
  if (in.flags & kNormalise) p.norm = weights<T>(index, 0, packed_conv2d::kNorm);
  p.weight = weights<T>(index, 0, packed_conv2d::kWeight);
  p.selectable = weights<T>(index, 0, packed_conv2d::kSelectable);
  p.bias = weights<float>(index, 0, packed_conv2d::kBias);
  if (has_constants(in)) p.constants = weights<float>(index, 0, packed_conv2d::kConstants);
  p.inputs = chosen(s_.inputs[index]);
  p.filters = chosen(s_.filters[index]);
  if (p.filters.list) p.mask = mask_of(in);
  p.off_look = step.off_look;
  p.walk = step.walk;
  if (s_.grouped && step.walk) p.order = order(), p.alike = alike();
  p.mask_stride = static_cast<int32_t>(plan_.gates);
  p.products = static_cast<int32_t>(in.groups);
  p.blocks = t.blocks();
  p.items = static_cast<int32_t>(ceil_div(call_.batch, t.pack) * t.blocks());
  p.src_offset = static_cast<int32_t>(in.src_offset);
  p.in_channels = static_cast<int32_t>(inputs_of(in));
  p.in_groups = static_cast<int32_t>(input_groups(in));
  p.out_channels = static_cast<int32_t>(outputs);
  p.out_offset = static_cast<int32_t>(in.out_offset);
  p.columns = static_cast<int32_t>(columns_of(outputs));
  p.limit = static_cast<int32_t>(whole_groups ? groups_of(outputs) * kGroup : outputs);
  p.padding = adds || whole_groups ? 0 : static_cast<int32_t>(round_up(end, kGroup) - end);
  p.activation = in.activation;
  if (in.activation != Activation::kIdentity)
    p.activated = static_cast<int32_t>(in.activated ? in.activated : in.out_channels);
  p.accumulate = adds;
  p.packed = step.packed;
  p.scattered = step.scattered && p.inputs.list;
  p.means = in.flags & kMeans;
  p.in_pairs = p.limit % 2 == 0 && in.out_offset % 2 == 0;
  p.wide_groups = sizeof(T) == 2 && !p.norm && !p.scattered && p.source.channels % 8 == 0 &&
                  in.src_offset / kGroup % 2 == 0 && (in.groups == 1 || p.in_channels % 8 == 0);
  p.taps = static_cast<int32_t>(in.taps);
  p.stride = static_cast<int32_t>(in.stride);
  p.dilation = static_cast<int32_t>(in.dilation);
  p.kernel_rows = static_cast<int32_t>(kernel.rows);
  p.kernel_columns = static_cast<int32_t>(kernel.columns);
  p.pad_rows = static_cast<int32_t>(kernel.pad_rows);
  p.pad_columns = static_cast<int32_t>(kernel.pad_columns);
  p.tile_rows = t.rows;
  p.tile_columns = t.columns;
  p.tiles_across = t.across;
  p.warps_down = t.warps_down;
  p.block_columns = t.block_columns;
  p.depth = t.depth;
  p.cell_stride = t.cell_stride;
  p.at_lists = t.at_lists;
  p.at_norm = t.at_norm;
  p.at_bias = t.at_bias;
  p.at_sums = t.at_sums;
  p.at_cells = t.at_cells;
  p.at_weights = t.at_weights;
  p.slot_bytes = t.slot_bytes;
  p.slots = t.slots;
  p.pack = t.pack;
  p.split = t.split;
  p.at_old = t.at_old;
  p.old_stride = t.old_stride;
  const int64_t room = ceil_div(int64_t{s_.multiprocessors} * t.resident / t.split, in.groups);
  const int64_t blocks = step.walk ? ceil_div(p.items, step.walk) : std::min<int64_t>(p.items, room) * t.split;
  auto start_with = [&]<int kTiles>() {
    if (is_plain(in))
      start<conv2d_kernel<T, kTiles, true>>(blocks, 1, kThreads, t.shared_bytes, p, t.split);
    else
      start<conv2d_kernel<T, kTiles, false>>(blocks, in.groups, kThreads, t.shared_bytes, p, t.split);
  };
  if (t.warp_tiles == 2) return start_with.template operator()<2>();
  if (t.warp_tiles == 4) return start_with.template operator()<4>();
  if constexpr (kMostWarpTiles<sizeof(T)> == 16) {
    if (t.warp_tiles == 8) return start_with.template operator()<8>();
    start_with.template operator()<16>();
  }
}

template <class T>
void NetworkRun<T>::resample(int index, const Instruction& in) {
  const int64_t to = in.dst < 0 ? in.src : in.dst;
  const int64_t tiles = ceil_div(plan_.buffers[to].pixels(), kStripPixels);
  ResampleParams p{};
  p.samples = samples_of(in.only_if);
  p.source = map_of(in.src);
  p.out = map_of(to);
  p.op = in.op;
  p.windowed = has(in.op, kWindowed);
  p.activation = in.activation;
  p.counts_padding = in.flags & kCountPadding;
  if (const Layout listed = listed::layout(in); listed.count) {
    p.weight = weights<float>(index, 0, listed::kWeight);
    p.bias = weights<float>(index, 0, listed::kBias);
    p.weight_row = static_cast<int32_t>(listed.fields[listed::kWeight].shape.sizes[1]);
  }
  p.in_channels = static_cast<int32_t>(in.in_channels);
  p.src_offset = static_cast<int32_t>(in.src_offset);
  p.out_offset = static_cast<int32_t>(in.out_offset);
  p.stride = static_cast<int32_t>(in.stride);
  p.dilation = static_cast<int32_t>(in.dilation);
  const Kernel window(in);
  p.window_rows = static_cast<int32_t>(window.rows);
  p.window_columns = static_cast<int32_t>(window.columns);
  p.pad_rows = static_cast<int32_t>(window.pad_rows);
  p.pad_columns = static_cast<int32_t>(window.pad_columns);
  if (in.out_mask >= 0) p.mask = mask_of(in);
  p.mask_stride = static_cast<int32_t>(plan_.gates);
  const bool whole = in.op == Op::kSubsample;  // zeros around what it takes
  const int64_t written = whole ? in.out_channels : in.in_channels, offset = whole ? 0 : in.out_offset;
  p.first_group = static_cast<int32_t>(offset / kGroup);
  p.groups = static_cast<int32_t>(groups_of(written + offset) - p.first_group);
  const bool pools = has(in.op, kLeavesPooled);
  if (pools) {
    p.pooling = pooling(index, 0, to, 0, written, tiles, tiles, 0);
    if (!s_.chains.empty()) p.gates = unit_gates(s_.chains[index]);
  } else {
    p.pooling.macs = call_.macs;
    p.pooling.tiles = p.pooling.blocks = static_cast<int32_t>(tiles);
  }
  const int64_t sums = pools ? std::max<int64_t>(1, kThreads / p.groups) * p.groups * kGroup * 4 : 0;
  const int64_t blocks = call_.batch * tiles, shared = kHeaderBytes + sums;
  if (p.weight)
    start<resample_kernel<T, true>>(blocks, 1, kThreads, shared, p);
  else
    start<resample_kernel<T, false>>(blocks, 1, kThreads, shared, p);
}

template <class T>
void NetworkRun<T>::pointwise(int index, const Instruction& in) {
  PointwiseParams p{};
  p.samples = samples_of(in.only_if);
  p.source = map_of(in.src);
  p.out = map_of(in.dst);
  if (in.factor >= 0) p.factor = pooled(in.factor), p.factor_row = positions(in.factor);
  if (in.flags & kAffine) {
    p.scale = weights<float>(index, 0, listed::kWeight);
    p.shift = weights<float>(index, 0, listed::kBias);
  }
  p.in_channels = static_cast<int32_t>(in.in_channels);
  p.src_offset = static_cast<int32_t>(in.src_offset);
  p.out_offset = static_cast<int32_t>(in.out_offset);
  p.first_group = static_cast<int32_t>(in.out_offset / kGroup);
  p.groups = static_cast<int32_t>(groups_of(in.out_offset + in.in_channels) - p.first_group);
  p.tiles = static_cast<int32_t>(ceil_div(plan_.buffers[in.src].pixels(), kStripPixels));
  p.times = in.op == Op::kUpsample ? static_cast<int32_t>(in.stride) : 1;
  p.accumulate = in.flags & kAccumulate;
  p.keeps_behind = p.accumulate || in.src == in.dst;
  p.activation = in.activation;
  start<pointwise_kernel<T>>(call_.batch * p.tiles, 1, kThreads, 0, p);
}

// Gates that read one map, to be decided in this order.
template <class T>
UnitGates NetworkRun<T>::unit_gates(const std::vector<ChainedGate>& chain) const {
  UnitGates g{};
  if (chain.empty()) return g;
  const Instruction& first = plan_.code[chain[0].instruction];
  g.weights = call_.weights;
  g.threshold = call_.thresholds;
  g.forced = call_.forced;
  g.taken = call_.taken;
  g.score = call_.score;
  g.words = gate_words(0);
  g.gates = plan_.gates;
  g.word_count = static_cast<int32_t>(s_.word_count);
  g.channels = static_cast<int32_t>(first.in_channels);
  g.kind = first.gate;
  g.first = -1;
  for (const ChainedGate& link : chain) {
    const Instruction& in = plan_.code[link.instruction];
    g.unit[g.count++] = {place(link.instruction, listed::kWeight), place(link.instruction, listed::kBias),
                         static_cast<int16_t>(in.first_gate), static_cast<int16_t>(link.unless)};
    if (!(in.flags & kAccumulate)) g.first = static_cast<int32_t>(in.first_gate);
  }
  if (first.gate != GateKind::kRecurrent) return g;
  const PackedLayout shared = wide_layout(recurrence::layout());
  auto field = [&](int f) {
    return reinterpret_cast<const float*>(call_.weights + first.shared + shared.fields[f].offset);
  };
  g.shared = {field(recurrence::kInput), field(recurrence::kHidden), field(recurrence::kBias),
              field(recurrence::kProjection), field(recurrence::kProjectionBias)};
  g.hidden = reinterpret_cast<float*>(call_.workspace + s_.hidden_at);
  return g;
}

template <class T>
void NetworkRun<T>::gate(int index, const Instruction& in) {
  if (!s_.chains.empty()) return;  // decided by what wrote its input
  UnitGateParams p{};
  p.samples = every_sample();
  p.pooled = pooled(in.src);
  p.macs = call_.macs;
  p.positions = positions(in.src);
  p.only_if = static_cast<int32_t>(in.only_if);
  p.gates = unit_gates({{index, -1}});
  start<unit_gate_kernel<kGateThreads>>(call_.batch, 1, kGateThreads, kGateBytes, p);
}

template <class T>
void NetworkRun<T>::decide(const Instruction& in) {
  DecideParams p{};
  p.samples = every_sample();
  p.pooled = pooled(in.src) + in.src_offset;
  p.threshold = call_.thresholds + in.first_gate;
  if (call_.forced) p.forced = call_.forced + in.first_gate;
  p.taken = call_.taken + in.first_gate;
  if (in.only_if >= 0) p.only_if = call_.taken + in.only_if;
  p.score = call_.score + in.first_gate;
  p.words = gate_words(in.first_gate);
  p.gates = plan_.gates;
  p.positions = positions(in.src);
  p.word_count = static_cast<int32_t>(s_.word_count);
  p.count = static_cast<int32_t>(in.in_channels);
  start<decide_kernel<kGateThreads>>(call_.batch, 1, kGateThreads, 0, p);
}

template <class T>
void NetworkRun<T>::linear(int index, const Instruction& in) {
  LinearParams p{};
  p.samples = samples_of(in.only_if);
  p.pooled = pooled(in.src);
  p.weight = weights<float>(index, 0, listed::kWeight);
  p.bias = weights<float>(index, 0, listed::kBias);
  p.out = (in.dst < 0 ? call_.logits : pooled(in.dst)) + in.out_offset;
  p.macs = call_.macs;
  p.row = in.dst < 0 ? plan_.logits : positions(in.dst);
  p.positions = positions(in.src);
  p.channels = static_cast<int32_t>(in.in_channels);
  p.outputs = static_cast<int32_t>(in.out_channels);
  p.activation = in.activation;
  start<linear_kernel<kThreads>>(call_.batch, 1, kThreads, 0, p);
}

template <class T>
void NetworkRun<T>::gradual_layer(const GradualRun& run) {
  const Instruction& unit = plan_.code[run.begin];
  GradualParams p{};
  p.samples = every_sample();
  p.map = map_of(unit.src);
  p.macs = call_.macs;
  p.weights = call_.weights;
  p.segments = static_cast<int32_t>(run.segments.size());
  p.rows = run.rows;
  p.blocks = run.blocks;
  p.channels = static_cast<int32_t>(unit.in_channels);
  p.groups = static_cast<int32_t>(packed_conv2d::groups(0, unit.in_channels));
  p.state_stride = run.state_stride;
  p.width_stride = run.width_stride;
  p.add_stride = run.add_stride;
  p.width_channels = run.width_channels;
  p.at_state = run.at_state;
  p.at_mid = run.at_mid;
  p.at_inner = run.at_inner;
  p.at_add = run.at_add;
  for (int i = 0; i < p.segments; ++i) {
    const GradualRun::Segment& from = run.segments[i];
    const Instruction& end = plan_.code[from.add >= 0 ? from.add : from.last];
    GradualSegment& to = p.segment[i];
    to.first = place(from.first, packed_conv2d::kWeight), to.first_bias = place(from.first, packed_conv2d::kBias);
    to.conv = place(from.conv, packed_conv2d::kWeight), to.conv_bias = place(from.conv, packed_conv2d::kBias);
    to.last = place(from.last, packed_conv2d::kWeight), to.last_bias = place(from.last, packed_conv2d::kBias);
    to.channel = static_cast<int32_t>(end.out_offset);
    to.size = static_cast<int32_t>(plan_.code[from.last].out_channels);
    to.width = static_cast<int32_t>(plan_.code[from.conv].in_channels);
    to.shortcut = from.add >= 0;
  }
  start<gradual_layer_kernel<T>>(call_.batch * run.blocks, 1, kThreads, run.shared_bytes, p, run.blocks);
}

template <class T>
void NetworkRun<T>::resident_stage(const StageRun& run) {
  StageParams p{};
  p.samples = samples_of(run.only_if);
  p.macs = call_.macs;
  p.weights = call_.weights;
  p.maps = static_cast<int32_t>(run.maps.size());
  p.blocks = run.blocks();
  auto pooled = [&](int64_t buffer) {
    const int64_t at = s_.states[buffer].pooled_at;
    return at < 0 ? nullptr : reinterpret_cast<float*>(call_.workspace + at);
  };
  const StageRun::OneMap &front = run.maps.front(), &back = run.maps.back();
  p.pools = plan_.code[back.units[0].last].flags & kPool;
  if (p.pools) p.pooled = pooled(back.buffer);
  p.first_pooled = pooled(front.buffer);
  std::vector<ChainedGate> gates;
  int32_t units = 0;
  for (int m = 0; m < p.maps; ++m) {
    const StageRun::OneMap& from = run.maps[m];
    StageMap& to = p.at[m];
    static_cast<StageCut&>(to) = from.cut;
    to.map = map_of(from.buffer);
    to.pixels = static_cast<float>(plan_.buffers[from.buffer].pixels());
    to.channels = static_cast<int32_t>(plan_.buffers[from.buffer].channels);
    to.groups = static_cast<int32_t>(packed_conv2d::groups(0, to.channels));
    to.first_unit = units;
    to.units = static_cast<int32_t>(from.units.size());
    if (const int shortcut = from.units[0].shortcut; shortcut >= 0)
      to.shortcut = place(shortcut, packed_conv2d::kWeight), to.shortcut_bias = place(shortcut, packed_conv2d::kBias);
    for (const StageRun::Unit& unit : from.units) {
      StageUnit& own = p.unit[units++];
      own = {{place(unit.first, packed_conv2d::kWeight), place(unit.last, packed_conv2d::kWeight)},
             {place(unit.first, packed_conv2d::kBias), place(unit.last, packed_conv2d::kBias)},
             -1};
      if (unit.gate < 0) continue;
      own.gate = static_cast<int32_t>(gates.size());
      gates.push_back({unit.gate, -1});
    }
  }
  p.own_gates = static_cast<int32_t>(gates.size());
  std::vector<ChainedGate> behind;
  if (!s_.chains.empty()) behind = s_.chains[run.end - 1];
  gates.insert(gates.end(), behind.begin(), behind.end());
  p.gates = unit_gates(gates);
  // The gates within the run read the map that a block is working on; those behind it all read one, of so many
  // channels.
  if (!behind.empty()) p.gates.channels = static_cast<int32_t>(plan_.code[behind[0].instruction].in_channels);
  const int64_t blocks = call_.batch * run.blocks();
  start<resident_stage_kernel<T>>(blocks, 1, kStageThreads, run.shared_bytes(), p, run.blocks());
}

template <class T>
void NetworkRun<T>::resident_bottleneck(const BottleneckRun& run) {
  const Instruction& first = plan_.code[run.begin];
  BottleneckParams p{};
  static_cast<BottleneckCut&>(p) = run.cut;
  p.samples = every_sample();
  p.map = map_of(first.src);
  p.macs = call_.macs;
  p.weights = call_.weights;
  p.lists = reinterpret_cast<const uint16_t*>(call_.workspace + s_.lists_at);
  p.counts = reinterpret_cast<const int32_t*>(call_.workspace + s_.counts_at);
  p.list_stride = static_cast<int32_t>(s_.list_stride);
  p.count_stride = static_cast<int32_t>(s_.range_count);
  p.units = run.units();
  p.channels = static_cast<int32_t>(first.in_channels);
  p.width = static_cast<int32_t>(first.out_channels);
  p.groups = static_cast<int32_t>(packed_conv2d::groups(0, p.channels));
  p.width_groups = static_cast<int32_t>(packed_conv2d::groups(0, p.width));
  p.columns = static_cast<int32_t>(columns_of(p.channels));
  p.width_columns = static_cast<int32_t>(columns_of(p.width));
  for (int u = 0; u < p.units; ++u) {
    const int begin = run.begin + 3 * u;
    p.unit[u].norm = place(begin, packed_conv2d::kNorm);
    for (int c = 0; c < 3; ++c) {
      const Listed& listed = s_.filters[begin + c];
      BottleneckConv& to = p.unit[u].conv[c];
      to = {place(begin + c, packed_conv2d::kWeight), place(begin + c, packed_conv2d::kBias), -1, -1};
      if (listed.list < 0) continue;
      const ChannelList& list = s_.lists[static_cast<size_t>(listed.list)];
      to.list = static_cast<int32_t>(list.at);
      to.count = static_cast<int32_t>(list.first_range + listed.ranges - 1);
    }
  }
  start<resident_bottleneck_kernel<T>>(call_.batch * p.blocks, 1, kStageThreads, p.shared_bytes, p, p.blocks);
}

}  // namespace dsn::cuda
