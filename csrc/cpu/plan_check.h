#pragma once

#include <vector>

#include "../common/checks.h"
#include "../common/plan.h"

namespace dsn::cpu {

// Layout of the words: number of buffers, kBufferFields words each, kInstructionFields words each instruction.
Plan read_plan(const char* op, const std::vector<int64_t>& words, const BufferSpec& image, int64_t weight_count);

// Refuses a plan that would read or write outside its buffers or weights; counts its gates and logits.
void check_plan(const char* op, Plan& plan, const BufferSpec& image, int64_t weight_count);

}  // namespace dsn::cpu
