#include "simt/runtime.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <thread>

#include "simt/cuda_on_host.h"
#include "simt/engine.h"

namespace dsn::simt {

Options& options() {
  static Options value;
  return value;
}

const char* sanitizer() {
#if defined(__SANITIZE_ADDRESS__)
  return "address";
#else
  return "none";
#endif
}

Counters& counters() {
  static Counters value;
  return value;
}

// ---- launching ----
namespace {

struct Device {
  std::vector<std::unique_ptr<Engine>> engines;
  std::map<const Stream*, std::array<uint32_t, kMaxHostThreads>> chain_generation;  // see Grid
};

Device& device() {
  static Device value;
  return value;
}

// The dynamic shared memory that a block of a kernel may ask for: what any may until the limit is set.
class SharedLimits {
 public:
  int of(const void* kernel) {
    const std::lock_guard lock(mutex_);
    const auto found = limits_.find(kernel);
    return found == limits_.end() ? 48 * 1024 : found->second;
  }
  void set(const void* kernel, int bytes) {
    const std::lock_guard lock(mutex_);
    limits_[kernel] = bytes;
  }

 private:
  std::mutex mutex_;
  std::map<const void*, int> limits_;
};

SharedLimits& shared_limits() {
  static SharedLimits value;
  return value;
}

}  // namespace

cudaError_t refusal(const Launch& launch) {
  const auto volume = [](const dim3& d) { return static_cast<int64_t>(d.x) * d.y * d.z; };
  const int64_t threads = volume(launch.block);
  const int64_t blocks = volume(launch.cluster);
  if (volume(launch.grid) == 0 || threads == 0 || threads > 1024 || blocks == 0 || blocks > kMaxCluster) {
    return cudaErrorInvalidConfiguration;
  }
  if (launch.grid.y > 65535 || launch.grid.z > 65535 || launch.grid.x > 0x7fffffffu || launch.block.z > 64) {
    return cudaErrorInvalidConfiguration;
  }
  if (launch.grid.x % launch.cluster.x || launch.grid.y % launch.cluster.y || launch.grid.z % launch.cluster.z) {
    return cudaErrorInvalidClusterSize;
  }
  if (threads * blocks > kMaxClusterThreads) return cudaErrorInvalidClusterSize;
  if (launch.shared_bytes < 0 || launch.shared_bytes > options().shared_limit) return cudaErrorInvalidValue;
  if (launch.shared_bytes > shared_limits().of(launch.function)) return cudaErrorInvalidValue;
  return cudaSuccess;
}

void forget_stream(const Stream* stream) { device().chain_generation.erase(stream); }

cudaError_t run(const Launch& launch) {
  if (const cudaError_t refused = refusal(launch); refused != cudaSuccess) return refused;
  if (engine) throw Error("a kernel launched from a kernel is not modelled");
  Device& dev = device();
  const int workers = std::clamp(options().host_threads, 1, kMaxHostThreads);
  while (static_cast<int>(dev.engines.size()) < workers) {
    dev.engines.push_back(std::make_unique<Engine>(static_cast<int>(dev.engines.size())));
  }
  Grid grid;
  grid.launch = &launch;
  auto& chain_generation = dev.chain_generation[launch.stream];
  for (int i = 0; i < kMaxHostThreads; ++i) {
    grid.first_generation[i] =
        (i < static_cast<int>(dev.engines.size()) ? dev.engines[i]->last_generation() : i << kGenerationBits) + 1;
    // A dependent launch may overlap the one ahead, and through it those that one overlaps.
    if (!launch.dependent) chain_generation[i] = grid.first_generation[i];
    grid.chain_generation[i] = chain_generation[i];
  }
  ++counters().launches;

  const int64_t clusters = static_cast<int64_t>(launch.grid.x) * launch.grid.y * launch.grid.z /
                           (launch.cluster.x * launch.cluster.y * launch.cluster.z);
  std::vector<int64_t> order(clusters);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937_64(options().seed + 1));
  std::atomic<int64_t> next = 0;
  std::mutex failed;
  std::exception_ptr failure;
  const auto work = [&](Engine& worker) {
    try {
      worker.begin(grid);
      for (int64_t i; (i = next.fetch_add(1)) < clusters;) worker.run_cluster(order[i]);
    } catch (...) {
      const std::lock_guard lock(failed);
      if (!failure) failure = std::current_exception();
      next = clusters;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < workers; ++i) threads.emplace_back(work, std::ref(*dev.engines[i]));
  work(*dev.engines[0]);
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < workers; ++i) counters() += dev.engines[i]->counters;
  if (failure) std::rethrow_exception(failure);
  return cudaSuccess;
}

// ---- the running thread ----
uint3 thread_idx() { return running().self().thread_idx; }
uint3 block_idx() { return running().self().block->index; }
dim3 block_dim() { return running().launch->block; }
dim3 grid_dim() { return running().launch->grid; }
unsigned char* shared_memory() { return running().self().block->shared; }

void syncthreads(std::source_location where) { running().barrier_wait(0, where, DSN_SIMT_CALLER); }

int syncthreads_reduce(Reduce reduce, int predicate, std::source_location where) {
  Engine& e = running();
  e.barrier_wait(predicate, where, DSN_SIMT_CALLER);
  return e.self().block->barrier.result[static_cast<int>(reduce)];
}

void access(const void* address, size_t bytes, AccessKind kind) {
  running().access(reinterpret_cast<uintptr_t>(address), bytes, kind, DSN_SIMT_CALLER);
}

void fail(const std::string& what) { running().fail(DSN_SIMT_CALLER, what); }

// ---- warp collectives ----
void warp_collective(const WarpOp& op, uint32_t mask, void* argument) {
  running().warp_collective(op, mask, argument, DSN_SIMT_CALLER);
}

namespace {

template <class Each>
void for_lanes(uint32_t mask, Each each) {
  for (; mask; mask &= mask - 1) each(__builtin_ctz(mask));
}

template <Shuffle kKind>
void perform_shuffle(void* const* arguments, uint32_t mask) {
  ++engine->counters.shuffles;
  const auto at = [&](int lane) { return static_cast<ShuffleArgument*>(arguments[lane]); };
  uint64_t values[kWarpSize];
  for_lanes(mask, [&](int lane) { values[lane] = at(lane)->value; });
  for_lanes(mask, [&](int lane) {
    const int width = at(lane)->width;
    const int operand = at(lane)->operand;
    if (width <= 0 || width > kWarpSize || (width & (width - 1))) {
      fail("shuffle of width " + std::to_string(width) + ": expected a power of two up to 32");
    }
    const int first = lane & ~(width - 1);
    int source = lane;
    if constexpr (kKind == Shuffle::kIndex) source = first + (operand & (width - 1));
    if constexpr (kKind == Shuffle::kUp) source = lane - operand >= first ? lane - operand : lane;
    if constexpr (kKind == Shuffle::kDown) source = lane + operand < first + width ? lane + operand : lane;
    if constexpr (kKind == Shuffle::kXor) source = (lane ^ operand) < first + width ? lane ^ operand : lane;
    if (!(mask >> source & 1)) {
      fail("shuffle: lane " + std::to_string(lane) + " reads lane " + std::to_string(source) +
           ", which is not in the mask: its value is undefined");
    }
    at(lane)->value = values[source];
  });
}

struct BallotArgument {
  bool predicate;
  uint32_t result;
};

void perform_ballot(void* const* arguments, uint32_t mask) {
  ++engine->counters.shuffles;
  const auto at = [&](int lane) { return static_cast<BallotArgument*>(arguments[lane]); };
  uint32_t result = 0;
  for_lanes(mask, [&](int lane) { result |= static_cast<uint32_t>(at(lane)->predicate) << lane; });
  for_lanes(mask, [&](int lane) { at(lane)->result = result; });
}

void perform_match(void* const* arguments, uint32_t mask) {
  ++engine->counters.shuffles;
  const auto at = [&](int lane) { return static_cast<uint64_t*>(arguments[lane]); };
  uint64_t results[kWarpSize] = {};
  for_lanes(mask, [&](int lane) {
    for_lanes(mask, [&](int other) { results[lane] |= uint64_t{*at(lane) == *at(other)} << other; });
  });
  for_lanes(mask, [&](int lane) { *at(lane) = results[lane]; });
}

template <WarpReduce kKind>
void perform_reduce(void* const* arguments, uint32_t mask) {
  ++engine->counters.shuffles;
  const auto at = [&](int lane) { return static_cast<int64_t*>(arguments[lane]); };
  int64_t result = *at(__builtin_ctz(mask));
  for_lanes(mask & (mask - 1), [&](int lane) {
    const int64_t value = *at(lane);
    if constexpr (kKind == WarpReduce::kAdd) result += value;
    if constexpr (kKind == WarpReduce::kMin) result = std::min(result, value);
    if constexpr (kKind == WarpReduce::kMax) result = std::max(result, value);
    if constexpr (kKind == WarpReduce::kAnd) result &= value;
    if constexpr (kKind == WarpReduce::kOr) result |= value;
    if constexpr (kKind == WarpReduce::kXor) result ^= value;
  });
  for_lanes(mask, [&](int lane) { *at(lane) = result; });
}

constexpr WarpOp kShuffles[] = {{"__shfl_sync", perform_shuffle<Shuffle::kIndex>},
                                {"__shfl_up_sync", perform_shuffle<Shuffle::kUp>},
                                {"__shfl_down_sync", perform_shuffle<Shuffle::kDown>},
                                {"__shfl_xor_sync", perform_shuffle<Shuffle::kXor>}};
constexpr WarpOp kBallot = {"a vote", perform_ballot};
constexpr WarpOp kMatch = {"__match_any_sync", perform_match};
constexpr WarpOp kReductions[] = {
    {"__reduce_add_sync", perform_reduce<WarpReduce::kAdd>}, {"__reduce_min_sync", perform_reduce<WarpReduce::kMin>},
    {"__reduce_max_sync", perform_reduce<WarpReduce::kMax>}, {"__reduce_and_sync", perform_reduce<WarpReduce::kAnd>},
    {"__reduce_or_sync", perform_reduce<WarpReduce::kOr>},   {"__reduce_xor_sync", perform_reduce<WarpReduce::kXor>}};
constexpr WarpOp kSyncWarp = {"__syncwarp", [](void* const*, uint32_t) { ++engine->counters.warp_barriers; }, true};

}  // namespace

void shuffle(Shuffle kind, uint32_t mask, ShuffleArgument& argument) {
  running().warp_collective(kShuffles[static_cast<int>(kind)], mask, &argument, DSN_SIMT_CALLER);
}

uint32_t ballot(uint32_t mask, bool predicate) {
  BallotArgument argument{predicate, 0};
  running().warp_collective(kBallot, mask, &argument, DSN_SIMT_CALLER);
  return argument.result;
}

uint32_t match_any(uint32_t mask, uint64_t value) {
  running().warp_collective(kMatch, mask, &value, DSN_SIMT_CALLER);
  return static_cast<uint32_t>(value);
}

int64_t warp_reduce(WarpReduce kind, uint32_t mask, int64_t value) {
  running().warp_collective(kReductions[static_cast<int>(kind)], mask, &value, DSN_SIMT_CALLER);
  return value;
}

void syncwarp(uint32_t mask) { running().warp_collective(kSyncWarp, mask, nullptr, DSN_SIMT_CALLER); }

}  // namespace dsn::simt

// ---- what launchers ask of the CUDA runtime, of the one device that is played ----
// NOLINTBEGIN: names and signatures are CUDA's
extern "C" {

cudaError_t CUDARTAPI cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  if (attribute != cudaDevAttrMaxSharedMemoryPerBlockOptin) return cudaErrorNotSupported;
  *value = dsn::simt::options().shared_limit;
  return cudaSuccess;
}

cudaError_t CUDARTAPI cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaErrorNotSupported;
  if (value < 0 || value > dsn::simt::options().shared_limit) return cudaErrorInvalidValue;
  dsn::simt::shared_limits().set(kernel, value);
  return cudaSuccess;
}

}  // extern "C"
// NOLINTEND
