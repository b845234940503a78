// Which instructions of a plan may run side by side.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "plan.h"

namespace dsn {

// The stream of each buffer, counted in the order in which they begin. Instructions that share a buffer are one stream,
// in the plan's order; only a guide leads from one stream to another.
inline std::vector<int> streams_of(const Plan& plan) {
  std::vector<int> root(plan.buffers.size());
  std::iota(root.begin(), root.end(), 0);
  for (const Instruction& in : plan.code)
    if (in.src >= 0 && in.dst >= 0) {  // two buffers become one stream
      const int from = root[in.src], to = root[in.dst];
      std::replace(root.begin(), root.end(), from, to);
    }
  std::vector<int> number(root.size(), -1);
  int streams = 0;
  for (const Instruction& in : plan.code) {
    int& stream = number[root[in.dst >= 0 ? in.dst : in.src]];
    if (stream < 0) stream = streams++;
  }
  for (int& r : root) r = number[r];
  return root;
}

}  // namespace dsn
