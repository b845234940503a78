#include <algorithm>
#include <utility>

#include "cuda/runs.h"

namespace dsn::cuda {
namespace {

// A convolution of all of one map's channels into all of another's.
bool is_whole_conv(const Plan& plan, const Instruction& in, int64_t taps, int64_t stride, int64_t flags,
                   Activation activation) {
  if (in.op != Op::kConv2d || in.taps != taps || in.stride != stride || in.columns || in.flags != flags) return false;
  if (in.activation != activation || in.activated || in.groups > 1) return false;
  if (in.out_mask >= 0 || in.in_mask >= 0 || in.src_offset || in.out_offset) return false;
  const BufferSpec &from = plan.buffers[in.src], &to = plan.buffers[in.dst];
  return in.in_channels == from.channels && in.out_channels == to.channels &&
         to.height == ceil_div(from.height, stride) && to.width == ceil_div(from.width, stride);
}

// The unit that instructions from `begin` on to the end of a region are: perhaps a gate of its own that reads the
// pooled map, an identity or a 1x1 of stride 2 as its shortcut, and two 3x3; no maps: a launch cannot walk it.
StageRun stage_unit(const Plan& plan, int64_t begin, int64_t end) {
  const std::vector<Instruction>& code = plan.code;
  StageRun run;
  run.begin = static_cast<int>(begin), run.end = static_cast<int>(end);
  StageRun::Unit unit;
  if (end - begin > 2 && code[begin].op == Op::kGate) unit.gate = static_cast<int>(begin++);
  if (end - begin == 3) unit.shortcut = static_cast<int>(begin++);
  if (end - begin != 2) return run;
  const Instruction &first = code[begin], &last = code[begin + 1];
  const int64_t pools = last.flags & kPool;
  const bool enters = unit.shortcut >= 0;
  if (!is_whole_conv(plan, first, 9, enters ? 2 : 1, 0, Activation::kRelu) ||
      !is_whole_conv(plan, last, 9, 1, kAccumulate | pools, Activation::kRelu) || last.src != first.dst ||
      last.only_if != first.only_if)
    return run;
  const int64_t shortcut = enters ? code[unit.shortcut].dst : first.src;
  if (last.dst != shortcut || !(plan.buffers[first.dst] == plan.buffers[last.dst])) return run;
  if (enters && (!is_whole_conv(plan, code[unit.shortcut], 1, 2, pools, Activation::kIdentity) ||
                 code[unit.shortcut].src != first.src || code[unit.shortcut].only_if >= 0))
    return run;
  if (unit.gate >= 0) {
    const Instruction& gate = code[unit.gate];
    if (gate.src != first.src || gate.in_channels != plan.buffers[gate.src].channels ||
        gate.first_gate != first.only_if || gate.only_if >= 0 || !pools)
      return run;
  }
  run.only_if = unit.gate >= 0 ? -1 : first.only_if;
  unit.first = static_cast<int>(begin), unit.last = unit.first + 1;
  run.maps.push_back({last.dst, {unit}, {}});
  return run;
}

// The kind that all gates of a run's units have; kNone if there are none.
GateKind kind_of(const Plan& plan, const StageRun& run) {
  for (const StageRun::OneMap& map : run.maps)
    for (const StageRun::Unit& unit : map.units)
      if (unit.gate >= 0) return plan.code[unit.gate].gate;
  return GateKind::kNone;
}

size_t units_of(const StageRun& run) {
  size_t count = 0;
  for (const StageRun::OneMap& map : run.maps) count += map.units.size();
  return count;
}

// Appends the next unit to a run: of the same maps or leading from there, with one kind of gate and none from before.
bool join(const Plan& plan, StageRun& run, const StageRun& next) {
  if (next.maps.empty() || next.begin != run.end || run.only_if >= 0 || next.only_if >= 0 ||
      units_of(run) == kStageUnits)
    return false;
  const StageRun::Unit &before = run.maps.back().units.back(), &unit = next.maps[0].units[0];
  const Instruction &a = plan.code[before.first], &b = plan.code[unit.first];
  const GateKind kind = kind_of(plan, run), other = kind_of(plan, next);
  const bool enters = unit.shortcut >= 0;
  if (b.src != run.maps.back().buffer || (!enters && a.dst != b.dst)) return false;
  if (kind != other && kind != GateKind::kNone && other != GateKind::kNone) return false;
  if ((plan.code[before.last].flags & kPool) != (plan.code[unit.last].flags & kPool)) return false;
  if (enters && (run.maps.size() == kStageMaps || b.in_channels > b.out_channels)) return false;
  if (enters)
    run.maps.push_back(next.maps[0]);
  else
    run.maps.back().units.push_back(unit);
  run.end = next.end;
  return true;
}

// Whether nothing behind a run reads the maps between the units' convolutions, or the pooled vectors of maps that it
// leaves.
bool keeps_to_itself(const Plan& plan, const StageRun& run) {
  return std::none_of(run.maps.begin(), run.maps.end(), [&](const StageRun::OneMap& map) {
    const bool is_last = map.buffer == run.maps.back().buffer;
    return is_read_from(plan, plan.code[map.units[0].first].dst, run.end) ||
           (!is_last && is_pool_read_from(plan, map.buffer, run.end));
  });
}

// Places what a block keeps in shared memory: first what all maps have alike. `before`: the map that a unit leads from.
bool place(const Plan& plan, const StageRun& run, const BufferSpec& map, const BufferSpec* before, StageCut& cut,
           Element element, const Machine& machine) {
  const int64_t channels = round_up(map.channels, kStep), bytes = bytes_of(element);
  const int64_t widest = plan.buffers[run.maps.back().buffer].channels;
  const bool gated = kind_of(plan, run) != GateKind::kNone;
  cut.strips = static_cast<int>(ceil_div(map.width, 8));
  cut.pieces = cut.strips * static_cast<int>(ceil_div(cut.rows, 2 * cut.tiles));
  cut.frame_rows = static_cast<int>(round_up(cut.rows, 2 * cut.tiles)) + 2;
  cut.pitch = cut.strips * 8 + 2;
  cut.stride = cell_stride(channels, element);
  cut.weight_pitch = cut.columns * kGroup + kConvPadding;
  const int64_t cells = int64_t{cut.frame_rows} * cut.pitch * cut.stride;
  int64_t at = kHeaderBytes;
  auto reserve = [&](int64_t n) { return static_cast<int>(std::exchange(at, round_up(at + n, 16))); };
  cut.at_gate = reserve(6 * gate::kEmbedding * 4);
  cut.at_limits = reserve(gated ? static_cast<int64_t>(units_of(run)) * 8 : 0);
  cut.at_hidden = reserve(2 * gate::kEmbedding * 4);
  cut.at_pooled = reserve(round_up(widest, kStep) * 4);
  cut.at_shared = reserve(gated ? wide_layout(recurrence::layout()).size : 0);
  cut.at_embed = reserve(gated ? wide_layout(gate::embedding_layout(widest)).size : 0);
  cut.received_pitch = static_cast<int>(round_up(cut.down * cut.pieces, 4)) + 4;  // channels begin in other banks
  cut.at_received = reserve(channels * cut.received_pitch * 4);
  cut.bias_bytes = cut.columns * 4;
  cut.at_bias = reserve(3 * cut.bias_bytes);
  cut.at_parts = reserve(cut.split > 1 ? kStageThreads * cut.tiles * cut.tiles * 4 * 4 : 0);
  cut.at_state = reserve(cells * bytes);
  cut.at_mid = reserve(cells * bytes);
  if (before) {
    const int64_t depth = round_up(before->channels, kStep);
    cut.source_pitch = 16 * cut.strips + 1;
    cut.source_stride = cell_stride(depth, element);
    cut.source_rows = 2 * (cut.frame_rows - 2) + 1;
    cut.at_source = reserve(int64_t{cut.source_rows} * cut.source_pitch * cut.source_stride * bytes);
    cut.at_shortcut = reserve(depth / kGroup * cut.weight_pitch * bytes);
  }
  cut.weight_bytes = static_cast<int>(9 * channels / kGroup * cut.weight_pitch * bytes);
  cut.at_weights = reserve(2 * cut.weight_bytes);
  cut.shared_bytes = static_cast<int>(at);
  return at <= machine.shared_bytes;
}

// Seconds of a convolution for the whole batch: what its longest warp multiplies, what all of a block's load from
// shared memory, or what comes from the second-level cache; and the cluster's barrier.
double seconds_of(const StageCut& cut, const BufferSpec& map, Element element, int64_t batch, const Machine& machine) {
  const auto bytes = static_cast<double>(bytes_of(element));
  const int64_t channels = round_up(map.channels, kStep), steps = channels / kStep, square = cut.tiles * cut.tiles;
  const int64_t items = int64_t{cut.pieces} * cut.columns / (8 * cut.tiles);
  const int64_t rounds = ceil_div(items * cut.split, kStageWarps) * ceil_div(steps, cut.split);
  const double multiply = static_cast<double>(rounds * 9 * square) * kWarpProductClocks;
  const int64_t loads = steps * (3 * (2 * cut.tiles + 2) + 9 * cut.tiles) * 128 * bytes_of(element);
  const double load = static_cast<double>(items * (loads + (cut.split - 1) * 2 * square * 512)) / kSharedRate;
  const int64_t blocks = batch * cut.down * cut.across, together = std::min<int64_t>(blocks, machine.multiprocessors);
  const double rate = std::min(machine.l2_rate / static_cast<double>(together) / machine.clock, kL2RateAlone);
  const double weights = static_cast<double>(9 * channels * cut.columns) * bytes / rate;
  const auto waves = static_cast<double>(ceil_div(blocks, machine.multiprocessors));
  return waves * (std::max({multiply, load, weights}) + kClusterClocks) / machine.clock;
}

// The cut of a map by `blocks` that takes the least time; no rows: none fits. `seconds` gets that of a convolution.
StageCut choose_cut(const Plan& plan, const StageRun& run, size_t index, int64_t blocks, Element element, int64_t batch,
                    const Machine& machine, double& seconds) {
  const BufferSpec& map = plan.buffers[run.maps[index].buffer];
  const BufferSpec* before = index > 0 ? &plan.buffers[run.maps[index - 1].buffer] : nullptr;
  const int64_t channels = round_up(map.channels, kStep);
  StageCut best, cut;
  for (int64_t across = 1; across <= blocks; across *= 2)
    for (cut.tiles = 2; cut.tiles > 0; --cut.tiles) {
      if (blocks % across || channels % (across * 8 * cut.tiles)) continue;
      cut.across = static_cast<int>(across);
      cut.rows = static_cast<int>(ceil_div(map.height, blocks / across));
      cut.down = static_cast<int>(blocks / across);
      cut.columns = static_cast<int>(channels / across);
      const int64_t pieces = ceil_div(map.width, 8) * ceil_div(cut.rows, 2 * cut.tiles);
      cut.split = 1;
      while (2 * cut.split <= channels / kStep && 2 * cut.split * pieces * cut.columns <= 8 * cut.tiles * kStageWarps)
        cut.split *= 2;
      if (!place(plan, run, map, before, cut, element, machine)) continue;
      const double own = seconds_of(cut, map, element, batch, machine);
      if (best.rows == 0 || own < seconds) best = cut, seconds = own;
    }
  return best;
}

// Cuts all maps of a run for clusters of one size; false: they do not fit.
bool cut_maps(const Plan& plan, StageRun& run, Element element, int64_t batch, const Machine& machine) {
  StageRun best;
  double least = 0;
  for (int blocks = 1; blocks <= machine.cluster; blocks *= 2) {
    double total = 0;
    int shared = 0;
    bool fits = true;
    for (size_t m = 0; m < run.maps.size() && fits; ++m) {
      double seconds = 0;
      run.maps[m].cut = choose_cut(plan, run, m, blocks, element, batch, machine, seconds);
      fits = run.maps[m].cut.rows > 0;
      total += static_cast<double>(run.maps[m].units.size()) * seconds;
      shared = std::max(shared, run.maps[m].cut.shared_bytes);
    }
    if (!fits || (!best.maps.empty() && total >= least)) continue;
    for (StageRun::OneMap& map : run.maps) map.cut.shared_bytes = shared;
    best = run, least = total;
  }
  if (!best.maps.empty()) run = best;
  return !best.maps.empty();
}

// The run that begins at instruction `begin` of a unit; no maps: there is none.
StageRun run_from(const Plan& plan, const std::vector<Region>& units, size_t u, int64_t begin, Element element,
                  int64_t batch, const Machine& machine) {
  StageRun run = stage_unit(plan, begin, units[u].end);
  if (run.maps.empty() || run.maps[0].units[0].shortcut >= 0) return {};
  while (++u < units.size() && join(plan, run, stage_unit(plan, units[u].begin, units[u].end))) {
  }
  // Fewer maps where not all fit one size of cluster.
  for (; !run.maps.empty(); run.maps.pop_back()) {
    run.end = run.maps.back().units.back().last + 1;
    if (keeps_to_itself(plan, run) && cut_maps(plan, run, element, batch, machine)) break;
  }
  return run;
}

}  // namespace

std::vector<StageRun> find_stage_runs(const Plan& plan, Element element, int64_t batch, const Machine& machine) {
  std::vector<StageRun> runs;
  if (machine.cluster == 1) return runs;
  const std::vector<Region> units = regions_of(plan, RegionKind::kResidualUnit);
  for (size_t u = 0; u < units.size();) {
    const int64_t begin = units[u].begin;
    StageRun run = run_from(plan, units, u, begin, element, batch, machine);
    // Where another launch must decide its gate, a unit may still be a run without it.
    if (run.maps.empty() && plan.code[begin].op == Op::kGate)
      run = run_from(plan, units, u, begin + 1, element, batch, machine);
    u += std::max<size_t>(units_of(run), 1);
    if (!run.maps.empty()) runs.push_back(std::move(run));
  }
  return runs;
}

}  // namespace dsn::cuda
