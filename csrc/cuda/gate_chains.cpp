#include <limits>

#include "cuda/schedule.h"

namespace dsn::cuda {
namespace {

// Whether an instruction leaves the pooled vector of a whole buffer.
bool pools(const Plan& plan, const Instruction& in, int64_t buffer) {
  if (in.home() != buffer) return false;
  const bool whole = in.out_offset == 0 && in.out_channels == plan.buffers[buffer].channels;
  return has(in.op, kLeavesPooled) || (in.op == Op::kConv2d && in.flags & kPool && whole);
}

// The gates behind instruction i that read what it pools, up to others that a launch of their own decides. One that
// follows a unit which may not run waits where it does: then the unit's last launch decides.
std::vector<ChainedGate> chain_behind(const Plan& plan, size_t i, int64_t buffer) {
  std::vector<ChainedGate> chain;
  int64_t unit = -1;  // the gate of a unit that pools the buffer anew
  for (size_t j = i + 1; j < plan.code.size(); ++j) {
    const Instruction& in = plan.code[j];
    if (in.op == Op::kGate) {
      const Instruction& first = chain.empty() ? in : plan.code[chain[0].instruction];
      if (in.src != buffer || in.gate != first.gate || in.in_channels != first.in_channels) break;
      chain.push_back({static_cast<int>(j), unit});
      unit = -1;
    } else if (pools(plan, in, buffer)) {
      if (in.only_if < 0 || unit >= 0) break;
      unit = in.only_if;
    } else if (in.op == Op::kDecide || in.dst == buffer) {
      break;
    }
  }
  return chain;
}

}  // namespace

std::vector<std::vector<ChainedGate>> chain_gates(const Plan& plan, const std::vector<StageRun>& stages) {
  std::vector<std::vector<ChainedGate>> chains(plan.code.size());
  const auto stage_of = [&](size_t i) -> const StageRun* {
    for (const StageRun& stage : stages)
      if (stage.holds(static_cast<int64_t>(i))) return &stage;
    return nullptr;
  };
  // Within a stage the last instruction stands for all: it leaves what any of them has pooled, or found.
  const auto counts = [&](size_t i) { return !stage_of(i) || static_cast<int>(i) + 1 == stage_of(i)->end; };
  for (size_t i = 0; i < plan.code.size(); ++i) {
    const Instruction& in = plan.code[i];
    const int64_t buffer = in.home();
    if (!pools(plan, in, buffer) || !counts(i)) continue;
    chains[i] = chain_behind(plan, i, buffer);
    const StageRun* stage = stage_of(i);
    size_t own = 0;  // gates that the stage decides on its way
    GateKind kind = chains[i].empty() ? GateKind::kNone : plan.code[chains[i][0].instruction].gate;
    for (size_t link = 0; link < chains[i].size(); ++link)
      if (stage_of(static_cast<size_t>(chains[i][link].instruction))) chains[i].resize(link);
    if (stage && !chains[i].empty())
      for (const StageRun::OneMap& map : stage->maps)
        for (const StageRun::Unit& unit : map.units) {
          own += unit.gate >= 0;
          if (unit.gate >= 0 && plan.code[unit.gate].gate != kind) return {};
        }
    if (chains[i].size() + own > kChainedGates) return {};
  }
  // Every other gate must be in the chains of the last launch that always pools its input and of all behind that.
  for (size_t j = 0; j < plan.code.size(); ++j) {
    const Instruction& gate = plan.code[j];
    if (gate.op != Op::kGate) continue;
    if (gate.only_if >= 0 || gate.first_gate > std::numeric_limits<int16_t>::max()) return {};
    if (stage_of(j)) continue;
    bool always = false;
    for (size_t i = j; i-- > 0 && !always;) {
      if (!pools(plan, plan.code[i], gate.src) || !counts(i)) continue;
      bool decides = false;
      for (const ChainedGate& link : chains[i]) decides |= link.instruction == static_cast<int>(j);
      if (!decides) return {};
      always = (stage_of(i) ? stage_of(i)->only_if : plan.code[i].only_if) < 0;
    }
    if (!always) return {};
  }
  return chains;
}

}  // namespace dsn::cuda
