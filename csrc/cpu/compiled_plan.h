// A plan with what every sample would otherwise compute again. Kept between calls: compiling costs as much as a small
// network.
#pragma once

#include <memory>
#include <vector>

#include "../common/checks.h"
#include "../plan/plan.h"

namespace dsn::cpu {

// Bit p of [0] / [1]: pixel `first + p` has a left / right neighbour in its row.
struct Edges {
  uint32_t bits[2] = {0, 0};
  Edges(int64_t first, int64_t width) {
    int64_t column = first % width;
    for (int p = 0; p < kTile; ++p) {
      bits[0] |= static_cast<uint32_t>(column != 0) << p;
      if (++column == width) column = 0;
      bits[1] |= static_cast<uint32_t>(column != 0) << p;
    }
  }
};

struct CompiledPlan {
  // Throws if the plan is refused, does not start from such an image, or needs other weights.
  static std::shared_ptr<const CompiledPlan> get(const char* op, const int64_t* words, int64_t count,
                                                 const BufferSpec& image, int64_t weight_count);

  CompiledPlan(const char* op, const int64_t* words, int64_t count);

  int64_t weight_bytes() const { return 4 * weight_count; }

  Plan plan;
  std::vector<std::vector<Layout>> layouts;  // of each instruction, of each layer
  std::vector<std::vector<Edges>> edges;     // of each buffer, of each tile
  int64_t weight_count = 0;                  // that the plan reads, at least
  int64_t chosen_bytes = 0;                  // of the weights of the filters that may be chosen
  std::vector<int64_t> map_bytes;            // of each step: of the maps that it reads and writes
  std::vector<int> every_channel;            // 0, 1, 2, ...: where none can be missing
  std::vector<bool> normalised;              // buffer -> a BN-ReLU reads it, so that its channels without data matter
  // What a timed run tells apart: an instruction, and after it the layers of a dense block.
  std::vector<int64_t> first_step;  // of each instruction
  int64_t steps = 0;
};

}  // namespace dsn::cpu
