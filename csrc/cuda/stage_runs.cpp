#include <algorithm>
#include <utility>

#include "cuda/schedule.h"

namespace dsn::cuda {
namespace {

// A 3x3 between two maps of one shape that reads and writes all their channels.
bool is_whole_conv(const Plan& plan, const Instruction& in, int64_t flags) {
  if (in.op != Op::kConv2d || in.taps != 9 || in.stride != 1 || in.columns || in.flags != flags) return false;
  if (in.out_mask >= 0 || in.in_mask >= 0 || in.relu_channels || in.src_offset || in.out_offset) return false;
  return plan.buffers[in.src] == plan.buffers[in.dst] && in.in_channels == plan.buffers[in.src].channels &&
         in.out_channels == in.in_channels;
}

// The unit that begins at an instruction, perhaps behind a gate of its own that reads the pooled map; no units: there
// is none.
StageRun stage_unit_at(const Plan& plan, size_t i) {
  const std::vector<Instruction>& code = plan.code;
  StageRun run;
  run.begin = static_cast<int>(i);
  StageRun::Unit unit;
  if (i < code.size() && code[i].op == Op::kGate) unit.gate = static_cast<int>(i++);
  if (i + 1 >= code.size()) return run;
  const Instruction &first = code[i], &last = code[i + 1];
  const int64_t pools = last.flags & kPool;
  if (!is_whole_conv(plan, first, kRelu) || !is_whole_conv(plan, last, kAccumulate | kRelu | pools) ||
      last.src != first.dst || last.dst != first.src || last.only_if != first.only_if)
    return run;
  if (unit.gate >= 0) {
    const Instruction& gate = code[unit.gate];
    if (gate.src != first.src || gate.first_gate != first.only_if || !pools) return run;
  }
  run.only_if = unit.gate >= 0 ? -1 : first.only_if;
  unit.first = static_cast<int>(i), unit.last = unit.first + 1;
  run.units.push_back(unit);
  run.end = unit.last + 1;
  return run;
}

GateKind kind_of(const Plan& plan, const StageRun& run) {
  for (const StageRun::Unit& unit : run.units)
    if (unit.gate >= 0) return plan.code[unit.gate].gate;
  return GateKind::kNone;
}

// Whether the next unit may join a run: the same maps, one kind of gate, and no gate from before either.
bool joins(const Plan& plan, const StageRun& run, const StageRun& next) {
  if (next.units.empty() || run.only_if >= 0 || next.only_if >= 0) return false;
  const Instruction &a = plan.code[run.units[0].first], &b = plan.code[next.units[0].first];
  const GateKind kind = kind_of(plan, run), other = kind_of(plan, next);
  return a.src == b.src && a.dst == b.dst && (kind == other || kind == GateKind::kNone || other == GateKind::kNone) &&
         (plan.code[run.units[0].last].flags & kPool) == (plan.code[next.units[0].last].flags & kPool);
}

// Whether the map between a unit's convolutions is read by nothing else.
bool keeps_to_itself(const Plan& plan, const StageRun& run) {
  const int64_t between = plan.code[run.units[0].first].dst;
  for (size_t j = static_cast<size_t>(run.end); j < plan.code.size(); ++j) {
    const Instruction& later = plan.code[j];
    if (later.src == between) return false;
    if (later.dst != between) continue;
    return later.out_offset == 0 && !(later.flags & kAccumulate);  // filled anew
  }
  return true;
}

bool place(StageRun& run, const BufferSpec& map, bool gated, Element element, const DeviceLimits& limits) {
  const int64_t channels = round_up(map.channels, kStep), bytes = bytes_of(element);
  run.strips = static_cast<int>(ceil_div(map.width, 8));
  run.pieces = run.strips * static_cast<int>(ceil_div(run.rows, 2 * run.tiles));
  run.frame_rows = static_cast<int>(round_up(run.rows, 2 * run.tiles)) + 2;
  run.pitch = run.strips * 8 + 2;
  run.stride = cell_stride(channels, element);
  run.weight_pitch = run.columns * kGroup + kConvPadding;
  const int64_t cells = int64_t{run.frame_rows} * run.pitch * run.stride;
  int64_t at = kHeaderBytes;
  auto reserve = [&](int64_t n) { return static_cast<int>(std::exchange(at, round_up(at + n, 16))); };
  run.at_gate = reserve(6 * gate::kEmbedding * 4);
  run.at_limits = reserve(gated ? static_cast<int64_t>(run.units.size()) * 8 : 0);
  run.at_hidden = reserve(2 * gate::kEmbedding * 4);
  run.at_pooled = reserve(channels * 4);
  run.received_pitch = static_cast<int>(round_up(run.down * run.pieces, 4)) + 4;  // channels begin in other banks
  run.at_received = reserve(channels * run.received_pitch * 4);
  run.at_shared = reserve(gated ? wide_unit(recurrence::layout()).size : 0);
  run.at_embed = reserve(gated ? wide_unit(gate::layout(map.channels, true)).size : 0);
  run.bias_bytes = run.columns * 4;
  run.at_bias = reserve(2 * run.bias_bytes);
  run.at_parts = reserve(run.split > 1 ? kStageThreads * run.tiles * run.tiles * 4 * 4 : 0);
  run.at_state = reserve(cells * bytes);
  run.at_mid = reserve(cells * bytes);
  run.weight_bytes = static_cast<int>(9 * channels / kGroup * run.weight_pitch * bytes);
  run.at_weights = reserve(2 * run.weight_bytes);
  run.shared_bytes = static_cast<int>(at);
  return at <= limits.shared_bytes;
}

// Seconds of a convolution for the whole batch: what its longest warp multiplies, what all of a block's load from
// shared memory, or what comes from the second-level cache; and the cluster's barrier.
double seconds_of(const StageRun& run, const BufferSpec& map, Element element, int64_t batch,
                  const DeviceLimits& limits) {
  constexpr double kClock = 1.75e9, kProduct = 51, kShared = 128, kLonely = 64,
                   kBarrier = 400;  // clocks, bytes a clock
  const double steps = static_cast<double>(ceil_div(map.channels, kStep)),
               bytes = static_cast<double>(bytes_of(element));
  const int64_t items = int64_t{run.pieces} * run.columns / (8 * run.tiles);
  const double products = 9.0 * run.tiles * run.tiles, loads = 3.0 * (2 * run.tiles + 2) + 9.0 * run.tiles;
  const double rounds = static_cast<double>(ceil_div(items * run.split, kStageWarps));
  const double multiply = rounds * static_cast<double>(ceil_div(int64_t(steps), run.split)) * products * kProduct;
  const double parts = (run.split - 1) * 2.0 * static_cast<double>(items) * run.tiles * run.tiles * 512;
  const double load = (static_cast<double>(items) * steps * loads * 128 * bytes + parts) / kShared;
  const int64_t blocks = batch * run.blocks(), together = std::min<int64_t>(blocks, limits.multiprocessors);
  const double rate = std::min(limits.l2_rate / static_cast<double>(together) / kClock, kLonely);
  const double weights = 9.0 * static_cast<double>(round_up(map.channels, kStep)) * run.columns * bytes / rate;
  const double waves = static_cast<double>(ceil_div(blocks, limits.multiprocessors));
  return waves * (std::max({multiply, load, weights}) + kBarrier) / kClock;
}

// The cut that takes the least time: the fewest blocks of those.
StageRun choose_cut(StageRun run, const BufferSpec& map, bool gated, Element element, int64_t batch,
                    const DeviceLimits& limits) {
  StageRun best;
  double least = 0;
  const int64_t channels = round_up(map.channels, kStep);
  for (int blocks = 1; blocks <= limits.cluster; blocks *= 2)
    for (run.across = 1; run.across <= blocks; run.across *= 2)
      for (run.tiles = 2; run.tiles > 0; --run.tiles) {
        run.rows = static_cast<int>(ceil_div(map.height, blocks / run.across));
        run.down = static_cast<int>(ceil_div(map.height, run.rows));
        if (channels % (run.across * 8 * run.tiles)) continue;
        run.columns = static_cast<int>(channels / run.across);
        const int64_t items =
            ceil_div(map.width, 8) * ceil_div(run.rows, 2 * run.tiles) * run.columns / (8 * run.tiles);
        run.split = 1;
        while (2 * run.split <= channels / kStep && 2 * run.split * items <= kStageWarps) run.split *= 2;
        if (!place(run, map, gated, element, limits)) continue;
        const double seconds = seconds_of(run, map, element, batch, limits);
        if (best.units.empty() || seconds < least) best = run, least = seconds;
      }
  return best;
}

}  // namespace

std::vector<StageRun> find_stage_runs(const Plan& plan, Element element, int64_t batch, const DeviceLimits& limits) {
  std::vector<StageRun> runs;
  if (limits.cluster == 1) return runs;
  for (size_t i = 0; i < plan.code.size();) {
    StageRun run = stage_unit_at(plan, i);
    if (run.units.empty()) {
      ++i;
      continue;
    }
    while (run.units.size() < kStageUnits) {
      const StageRun next = stage_unit_at(plan, static_cast<size_t>(run.end));
      if (!joins(plan, run, next)) break;
      run.units.push_back(next.units.front());
      run.end = next.end;
    }
    i = static_cast<size_t>(run.end);
    if (!keeps_to_itself(plan, run)) continue;
    const BufferSpec& map = plan.buffers[plan.code[run.units[0].first].src];
    run = choose_cut(run, map, kind_of(plan, run) != GateKind::kNone, element, batch, limits);
    if (!run.units.empty()) runs.push_back(run);
  }
  return runs;
}

}  // namespace dsn::cuda
