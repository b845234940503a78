// Shared by what joins a plan's regions to runs, each of which one launch may walk.
#pragma once

#include <algorithm>
#include <map>

#include "cuda/schedule.h"

namespace dsn::cuda {

inline std::vector<Region> regions_of(const Plan& plan, RegionKind kind) {
  std::vector<Region> regions;
  std::copy_if(plan.regions.begin(), plan.regions.end(), std::back_inserter(regions),
               [&](const Region& region) { return region.kind == kind; });
  return regions;
}

// Whether an instruction from `begin` on reads what a buffer holds there, rather than what others write before it.
inline bool is_read_from(const Plan& plan, int64_t buffer, int begin) {
  std::map<int64_t, int64_t> fresh;  // channels that have been written anew, by the gate behind which, -1: all samples'
  for (size_t i = static_cast<size_t>(begin); i < plan.code.size(); ++i) {
    const Instruction& in = plan.code[i];
    const int64_t known = std::max(fresh[-1], fresh[in.only_if]);
    if (fresh[-1] >= plan.buffers[buffer].channels) return false;
    if (in.guide == buffer || in.factor == buffer || (in.src == buffer && in.src_offset + in.in_channels > known))
      return true;
    if (in.dst != buffer) continue;
    const int64_t end = in.out_offset + in.written_channels();
    if (has(in.op, kLayered) || (in.flags & kAccumulate && end > known)) return true;
    if (in.out_offset <= known) fresh[in.only_if] = std::max(known, end);
  }
  return false;
}

// Whether one from `begin` on reads a buffer's pooled vector.
inline bool is_pool_read_from(const Plan& plan, int64_t buffer, int begin) {
  return std::any_of(plan.code.begin() + begin, plan.code.end(), [&](const Instruction& in) {
    return (in.src == buffer && has(in.op, kReadsPooled)) || in.factor == buffer;
  });
}

// The cut of a map's rows by the smallest cluster that holds them, or by a larger one where multiprocessors would be
// idle: place(cut) says whether one fits. No rows: none does.
template <class Cut, class Place>
Cut cut_rows(int64_t height, int64_t batch, const Machine& machine, Cut cut, Place place) {
  Cut best{};
  for (int blocks = 1; blocks <= machine.cluster; blocks *= 2) {
    cut.rows = static_cast<int>(ceil_div(height, blocks));
    cut.blocks = static_cast<int>(ceil_div(height, cut.rows));
    if (!place(cut)) continue;
    const bool room = batch * cut.blocks <= machine.multiprocessors && cut.rows > 1;
    if (best.rows == 0 || room) best = cut;
  }
  return best;
}

}  // namespace dsn::cuda
