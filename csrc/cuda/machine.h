// What the schedules know of a GPU. What a device tells is read from it; the rest was measured on an H200 or follows
// from its documents, and an H200 it is where there is no device: for the model and the host runner.
#pragma once

namespace dsn::cuda {

constexpr int kLargestCluster = 8;  // blocks that every device with clusters can run together

struct Machine {
  int multiprocessors = 132;
  int shared_bytes = 227 * 1024;  // of a block
  int cluster = kLargestCluster;  // blocks that it can run together; 1: it has no clusters
  double clock = 1.75e9;          // Hz under load
  double l2_rate = 5.5e12;        // bytes/s that all blocks together copy from the second-level cache

  // Of a device: peak_clock is the one that it reports, of which an H200 keeps a part under load. The second-level
  // cache's rate follows multiprocessors and clock.
  static Machine of(int multiprocessors, int shared_bytes, int cluster, double peak_clock) {
    const Machine h200;
    const double clock = peak_clock * 1.75 / 1.98;
    const double share = multiprocessors * clock / (h200.multiprocessors * h200.clock);
    return {multiprocessors, shared_bytes, cluster, clock, h200.l2_rate * share};
  }
};

constexpr int kReservedBytes = 1024;  // of a multiprocessor's shared memory, for each block that it holds

// Bytes a clock to one multiprocessor.
constexpr double kSharedRate = 128;  // from its shared memory
constexpr double kL2Rate = 24;       // from the second-level cache while all others copy too
constexpr double kL2RateAlone = 64;  // while none does

// Clocks.
constexpr double kTripClocks = 700;        // until the second-level cache answers
constexpr double kStepClocks = 100;        // that a warp waits for a k-step's operands and sums
constexpr double kClusterClocks = 400;     // outputs to the other blocks of a cluster, and its barrier
constexpr double kWarpProductClocks = 51;  // of a 16 x 16 x 8 product in a warp that loads as it multiplies
constexpr double product_clocks(bool is_float) { return is_float ? 16 : 1.6; }  // the same of a multiprocessor

// Seconds.
constexpr double kLaunchSeconds = 1.3e-6;  // from one kernel of a graph to the next that depends on it
constexpr double kCompareSeconds = 6e-8;   // of a sample's masks with those before it

constexpr double kBlockCost = 64;  // of a block beside its pixels: as many pixels' work

}  // namespace dsn::cuda
