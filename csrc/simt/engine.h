// The device: runs clusters of blocks one after another, each thread a fiber. One engine per host thread.
#pragma once

#include <random>

#include "simt/clocks.h"
#include "simt/fiber.h"
#include "simt/memory.h"
#include "simt/options.h"
#include "simt/runtime.h"

namespace dsn::simt {

constexpr int kWarpSize = 32;
constexpr int kMaxCluster = 16;
constexpr int kMaxClusterThreads = 4096;
constexpr int kMaxHostThreads = 8;
constexpr uint32_t kGenerationBits = 29;  // of a generation; the upper three number the engine
// A block's part of its cluster's window of shared addresses, which begins at kSharedBase: no valid address is 0.
constexpr uint32_t kSharedSlot = 256 * 1024;
constexpr uint32_t kSharedBase = 1024;

inline uintptr_t return_address(void* address) { return reinterpret_cast<uintptr_t>(address); }
#define DSN_SIMT_CALLER ::dsn::simt::return_address(__builtin_return_address(0))

struct AsyncCopy {
  unsigned char* destination;
  const unsigned char* source;
  uint32_t bytes;
  uint32_t from_source;  // the rest is zero
  uintptr_t pc;
};

// Groups of asynchronous copies of one thread, oldest first.
struct CopyGroups {
  std::vector<AsyncCopy> open;
  std::vector<std::vector<AsyncCopy>> committed;
  void clear() {
    open.clear();
    committed.clear();
  }
};

struct Block;
struct Warp;

struct Fiber {
  enum class State : uint8_t { kReady, kBlocked, kExited };
  Context context;
  Block* block;
  Warp* warp;
  int index;  // in the cluster
  int lane;
  uint3 thread_idx;
  State state;
  bool dependency_met;   // may touch what the kernels ahead wrote
  bool cluster_arrived;  // at the cluster's barrier, and has not waited since
  uint32_t cluster_phase;
  const char* waits_in;  // when blocked
  uintptr_t waits_at;
  CopyGroups copies;
};

struct Warp {
  Block* block;
  Fiber* lanes[kWarpSize];
  uint32_t exists;
  uint32_t ready;
  uint32_t exited;
  bool queued;
  // lanes that wait in a collective
  uint32_t waiting;
  bool uniform;  // they all wait in the same operation with the same mask
  const WarpOp* ops[kWarpSize];
  uint32_t masks[kWarpSize];
  void* arguments[kWarpSize];
};

// Of a block: it expects every thread that has not exited.
struct Barrier {
  int arrived = 0;
  std::vector<Fiber*> waiting;
  std::source_location where;  // of the first to arrive
  Fiber* first = nullptr;
  Clock clock;
  bool dependency_met = false;
  int nonzero = 0;  // predicates
  int result[3] = {};
};

struct ClusterBarrier {
  int64_t arrived = 0;
  uint32_t phase = 0;
  std::vector<Fiber*> waiting;
  Clock arriving;
  Clock completed;
};

struct Block {
  int rank;  // in the cluster
  uint3 index;
  unsigned char* shared;
  int live;  // threads that have not exited
  bool idle;
  bool waited;  // for the kernels ahead: some thread called grid_dependency_wait
  Barrier barrier;
};

// What the engines of one launch share.
struct Grid {
  const Launch* launch;
  uint32_t first_generation[kMaxHostThreads];  // of this launch, by engine
  uint32_t chain_generation[kMaxHostThreads];  // of the kernels that may still run beside this one
};

class Engine {
 public:
  explicit Engine(int number);
  ~Engine();

  void begin(const Grid& grid);
  void run_cluster(int64_t cluster);  // throws Error
  uint32_t last_generation() const { return generation_; }
  Counters counters;

  // ---- of the running thread ----
  Fiber* fiber = nullptr;  // null outside kernels
  const Launch* launch = nullptr;
  Fiber& self() { return *fiber; }

  [[noreturn]] void fail(uintptr_t pc, const std::string& what);
  void block_here(const char* waits_in, uintptr_t pc);  // until somebody calls wake()
  void wake(Fiber& fiber);
  void warp_collective(const WarpOp& op, uint32_t mask, void* argument, uintptr_t pc);
  void barrier_wait(int predicate, const std::source_location& where, uintptr_t pc);
  void cluster_arrive(uintptr_t pc);
  void cluster_wait(uintptr_t pc);

  // ---- memory ----
  void access(uintptr_t address, size_t bytes, AccessKind kind, uintptr_t pc) {
    if (address - stacks_begin_ < stacks_bytes_) return;  // locals: registers, on a device
    if (address - shared_begin_ < shared_bytes_) return shared_access(address, bytes, kind, pc);
    global_access(address, bytes, kind, pc);
  }
  // Checked pointer to `bytes` at a shared address.
  unsigned char* shared_pointer(uint32_t address, size_t bytes, AccessKind kind, uintptr_t pc);
  uint32_t shared_address(const void* pointer, uintptr_t pc);
  // The race detector's part of an access by `thread`, at a pointer that shared_pointer gave.
  void shared_touch(Fiber& thread, const unsigned char* pointer, size_t bytes, AccessKind kind, uintptr_t pc);
  // An asynchronous copy to shared memory: poisons its destination; then lands, by the running thread.
  void start_copy(Fiber& thread, const AsyncCopy& copy);
  void land(const AsyncCopy& copy);
  std::string describe(uintptr_t address) const;  // "weights + 16", "shared memory + 8"
  void global_access(uintptr_t address, size_t bytes, AccessKind kind, uintptr_t pc);
  void shared_access(uintptr_t address, size_t bytes, AccessKind kind, uintptr_t pc);

  Clocks clocks;
  std::vector<Block> blocks;
  ClusterBarrier cluster_barrier;
  std::mt19937_64 random;

 private:
  static void fiber_main();
  void run_warp(Warp& warp);
  bool may_meet(const Warp& warp, const WarpOp& op, uint32_t mask, uintptr_t pc);
  void thread_exit();
  void complete_barrier(Block& block);
  void complete_cluster_barrier();
  void enqueue(Warp& warp);
  void deadlock();
  std::string thread_name(const Fiber& fiber) const;
  std::string where(uintptr_t pc) const;
  uint32_t next_generation();
  // Null if what `touch` tells of happened before this thread's present, else why not.
  const char* unordered(const Touch& touch, const Fiber& thread, bool global) const;
  void touch(Records& records, uintptr_t begin, uintptr_t address, size_t bytes, AccessKind kind, const Region* region,
             Fiber& thread, uintptr_t pc);
  void check_shared(uintptr_t address, size_t bytes, AccessKind kind, uintptr_t pc);
  std::string place(uintptr_t address, const Region* region) const;

  int number_;
  StackPool stacks_;
  uintptr_t stacks_begin_;
  size_t stacks_bytes_;
  uintptr_t shared_begin_;
  size_t shared_bytes_;
  Records shared_records_;
  uint32_t generation_;
  uint32_t cluster_generation_ = 0;
  const Grid* grid_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  std::vector<Warp*> queue_;
  Context scheduler_;
  std::string error_;
  int64_t live_ = 0;
  Region* last_region_ = nullptr;
  bool acquired_ = false;  // this cluster has done an atomic on global memory, by which blocks pass data to each other
};

// The engine of this host thread while it runs kernels, else null.
extern thread_local Engine* engine __attribute__((tls_model("initial-exec")));

// The engine, from an operation that makes sense in a kernel only.
inline Engine& running() {
  if (!engine || !engine->fiber) throw Error("a device function was called outside a kernel");
  return *engine;
}

std::string to_text(uint3 index);
// "file.cuh:12" of the innermost frame of a kernel's own source, not of the headers it calls.
std::string source_line(uintptr_t pc);
std::string source_line_of_caller(uintptr_t pc);  // the same, looking further up the running stack

}  // namespace dsn::simt
