#include <limits>

#include "cuda/schedule.h"

namespace dsn::cuda {
namespace {

// Whether an instruction leaves the pooled vector of a whole buffer.
bool pools(const Plan& plan, const Instruction& in, int64_t buffer) {
  if (in.op == Op::kPoolSums) return in.src == buffer;
  if (in.dst != buffer) return false;
  const bool whole = in.out_offset == 0 && in.out_channels == plan.buffers[buffer].channels;
  return in.op == Op::kSubsample || (in.op == Op::kConv2d && in.flags & kPool && whole);
}

// The gates behind instruction i that read what it pools. One that follows a unit which may not run waits where it
// does: then the unit's last launch decides.
std::vector<ChainedGate> chain_behind(const Plan& plan, size_t i, int64_t buffer) {
  std::vector<ChainedGate> chain;
  int64_t unit = -1;  // the gate of a unit that pools the buffer anew
  for (size_t j = i + 1; j < plan.code.size(); ++j) {
    const Instruction& in = plan.code[j];
    if (in.op == Op::kGate) {
      if (in.src != buffer || (!chain.empty() && in.gate != plan.code[chain[0].instruction].gate)) break;
      chain.push_back({static_cast<int>(j), unit});
      unit = -1;
    } else if (pools(plan, in, buffer)) {
      if (in.only_if < 0 || unit >= 0) break;
      unit = in.only_if;
    } else if (in.dst == buffer) {
      break;
    }
  }
  return chain;
}

}  // namespace

std::vector<std::vector<ChainedGate>> chain_gates(const Plan& plan) {
  std::vector<std::vector<ChainedGate>> chains(plan.code.size());
  for (size_t i = 0; i < plan.code.size(); ++i) {
    const Instruction& in = plan.code[i];
    const int64_t buffer = in.op == Op::kPoolSums ? in.src : in.dst;
    if (buffer < 0 || !pools(plan, in, buffer)) continue;
    chains[i] = chain_behind(plan, i, buffer);
    if (chains[i].size() > kChainedGates) return {};
  }
  // Every gate must be in the chains of the last launch that always pools its input and of all behind that.
  for (size_t j = 0; j < plan.code.size(); ++j) {
    const Instruction& gate = plan.code[j];
    if (gate.op != Op::kGate) continue;
    if (gate.first_gate > std::numeric_limits<int16_t>::max()) return {};
    bool always = false;
    for (size_t i = j; i-- > 0 && !always;) {
      if (!pools(plan, plan.code[i], gate.src)) continue;
      bool decides = false;
      for (const ChainedGate& link : chains[i]) decides |= link.instruction == static_cast<int>(j);
      if (!decides) return {};
      always = plan.code[i].op != Op::kConv2d || plan.code[i].only_if < 0;
    }
    if (!always) return {};
  }
  return chains;
}

}  // namespace dsn::cuda
