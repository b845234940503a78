// Which samples of a batch a thread takes side by side, a layer at a time: its weights are fetched once for all of
// them, and packed once for those whose masks choose the same filters; but their maps may leave the second cache.
#pragma once

#include <cstdint>
#include <vector>

#include "compiled_plan.h"

namespace dsn::cpu {

Costs measure_costs();

// A batch's samples with those of equal gates next to each other.
struct ByPattern {
  ByPattern(const uint8_t* gates, int64_t samples, int64_t count);  // gates: [samples][count]
  std::vector<int64_t> order;
  int64_t patterns = 0;  // different ones
};

// How many samples a thread does best to take side by side, where `alike` neighbours have equal gates on average; one
// if that keeps a sample's state in the second cache. sample_bytes: working memory of one.
int group_size(const CompiledPlan& plan, int64_t sample_bytes, double alike);

}  // namespace dsn::cpu
