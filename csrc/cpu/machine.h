// What the CPU kernels and their packed layouts know of a machine: measured with AVX-512, where not said otherwise. The
// second cache's true size is asked of the system, and what grouping samples costs is measured and told in the plan.
#pragma once

#include <cstdint>

namespace dsn {

constexpr int64_t kFirstCacheFloats = 8192;     // of a core's first cache, 32 KiB
constexpr int64_t kSecondCacheFloats = 262144;  // and of its second, 1 MiB

// Output channels that are computed at a time, and the relative time of one of them.
constexpr struct {
  int rows;
  double cost;
} kRowBlocks[] = {{12, 1.0}, {11, 1.02}, {10, 1.0}, {9, 1.02}, {8, 1.05}, {7, 1.08}, {6, 1.15}, {5, 1.25}, {4, 1.3}};

constexpr double kWinogradCost = 1.25;  // of one of Winograd's products: a fifth of the time is the way there and back

}  // namespace dsn
