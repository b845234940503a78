#include "simt/engine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <map>

namespace dsn::simt {

thread_local Engine* engine __attribute__((tls_model("initial-exec"))) = nullptr;

namespace {

int count(const dim3& d) { return static_cast<int>(d.x * d.y * d.z); }

uint3 unravel(int64_t index, const dim3& size) {
  return {static_cast<unsigned>(index % size.x), static_cast<unsigned>(index / size.x % size.y),
          static_cast<unsigned>(index / size.x / size.y)};
}

}  // namespace

std::string to_text(uint3 index) {
  return "(" + std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z) + ")";
}

Engine::Engine(int number)
    : number_(number),
      stacks_(kMaxClusterThreads),
      shared_bytes_(static_cast<size_t>(kMaxCluster) * kSharedSlot),
      shared_records_(shared_bytes_),
      generation_(static_cast<uint32_t>(number) << kGenerationBits) {
  stacks_begin_ = reinterpret_cast<uintptr_t>(stacks_.begin());
  stacks_bytes_ = stacks_.bytes();
  void* window =
      mmap(nullptr, shared_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (window == MAP_FAILED) throw std::bad_alloc();
  shared_begin_ = reinterpret_cast<uintptr_t>(window);
}

Engine::~Engine() { munmap(reinterpret_cast<void*>(shared_begin_), shared_bytes_); }

uint32_t Engine::next_generation() {
  if ((++generation_ & ((1u << kGenerationBits) - 1)) == 0) throw Error("too many barriers for one process");
  return generation_;
}

void Engine::begin(const Grid& grid) {
  grid_ = &grid;
  launch = grid.launch;
  last_region_ = nullptr;
  const int blocks_in_cluster = count(launch->cluster);
  const int threads = count(launch->block);
  const int warps = (threads + kWarpSize - 1) / kWarpSize;
  blocks.resize(blocks_in_cluster);
  fibers_.resize(static_cast<size_t>(blocks_in_cluster) * threads);
  warps_.resize(static_cast<size_t>(blocks_in_cluster) * warps);
  counters = {};
}

void Engine::run_cluster(int64_t cluster) {
  const dim3 clusters(launch->grid.x / launch->cluster.x, launch->grid.y / launch->cluster.y,
                      launch->grid.z / launch->cluster.z);
  const uint3 at = unravel(cluster, clusters);
  const int threads = count(launch->block);
  const int warps = (threads + kWarpSize - 1) / kWarpSize;
  random.seed(options().seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(cluster));
  cluster_generation_ = next_generation();
  clocks.start(static_cast<int>(fibers_.size()), cluster_generation_);
  cluster_barrier = {};
  queue_.clear();
  error_.clear();
  acquired_ = false;
  live_ = static_cast<int64_t>(fibers_.size());
  for (int b = 0; b < static_cast<int>(blocks.size()); ++b) {
    const uint3 in = unravel(b, launch->cluster);
    Block& block = blocks[b];
    block.rank = b;
    block.index = {at.x * launch->cluster.x + in.x, at.y * launch->cluster.y + in.y, at.z * launch->cluster.z + in.z};
    block.shared = reinterpret_cast<unsigned char*>(shared_begin_) + static_cast<size_t>(b) * kSharedSlot;
    block.live = threads;
    block.idle = true;
    block.waited = !launch->dependent;
    block.barrier.arrived = 0;
    block.barrier.waiting.clear();
    block.barrier.nonzero = 0;
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(block.shared, kSharedSlot);
#endif
    std::memset(block.shared, 0xff, launch->shared_bytes);  // NaN in every float type
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(block.shared + launch->shared_bytes, kSharedSlot - launch->shared_bytes);
#endif
    for (int w = 0; w < warps; ++w) {
      Warp& warp = warps_[b * warps + w];
      warp = {};
      warp.block = &block;
      const int lanes = std::min(kWarpSize, threads - w * kWarpSize);
      warp.exists = lanes == kWarpSize ? ~0u : (1u << lanes) - 1;
      warp.ready = warp.exists;
      for (int l = 0; l < lanes; ++l) {
        const int thread = w * kWarpSize + l;
        Fiber& fiber = fibers_[b * threads + thread];
        fiber.state = Fiber::State::kReady;
        fiber.cluster_arrived = false;
        fiber.cluster_phase = 0;
        fiber.copies.clear();
        fiber.context = stacks_.prepare(b * threads + thread, fiber_main);
        fiber.block = &block;
        fiber.warp = &warp;
        fiber.index = b * threads + thread;
        fiber.lane = l;
        fiber.thread_idx = unravel(thread, launch->block);
        fiber.dependency_met = !launch->dependent;
        warp.lanes[l] = &fiber;
      }
      enqueue(warp);
    }
  }

  // How likely a warp runs on after a collective: warps that keep step and warps that race ahead find different faults.
  const uint64_t eager = random() % 3;
  engine = this;
  size_t chosen = 0;
  while (live_ > 0 && error_.empty()) {
    if (queue_.empty()) {
      deadlock();
      break;
    }
    if (chosen >= queue_.size() || random() % 16 >= eager * 7) chosen = random() % queue_.size();
    Warp& warp = *queue_[chosen];
    run_warp(warp);
    if (!warp.ready) {
      warp.queued = false;
      queue_[chosen] = queue_.back();
      queue_.pop_back();
    }
  }
  fiber = nullptr;
  engine = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(reinterpret_cast<void*>(shared_begin_), shared_bytes_);
#endif
  if (!error_.empty()) throw Error(error_);
  for (const Block& block : blocks) {
    ++counters.blocks;
    counters.idle_blocks += block.idle;
  }
}

// Every ready lane once, in an order of its own.
void Engine::run_warp(Warp& warp) {
  const uint64_t draw = random();
  const uint32_t first = draw & 31;
  const uint32_t step = (draw >> 5 & 31) | 1;
  for (uint32_t i = 0; i < kWarpSize; ++i) {
    const uint32_t lane = (first + i * step) & 31;
    if (!(warp.ready >> lane & 1)) continue;
    fiber = warp.lanes[lane];
    switch_context(scheduler_, fiber->context);
    if (!error_.empty()) return;
  }
}

void Engine::fiber_main() {
  Engine& self = *engine;
  enter_context(self.scheduler_);
  self.launch->entry(self.launch->params);
  self.thread_exit();
  leave_context(self.fiber->context, self.scheduler_);
}

void Engine::thread_exit() {
  Fiber& thread = self();
  Warp& warp = *thread.warp;
  Block& block = *thread.block;
  const uint32_t bit = 1u << thread.lane;
  for (uint32_t rest = warp.waiting; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    if (warp.masks[lane] & bit) {
      const Fiber& other = *warp.lanes[lane];
      fail(other.waits_at, "thread " + thread_name(thread) + " has ended, and " + warp.ops[lane]->name + " by thread " +
                               thread_name(other) + " waits for it");
    }
  }
  thread.state = Fiber::State::kExited;
  warp.ready &= ~bit;
  warp.exited |= bit;
  if (--block.live == 0 && !block.waited) {
    fail(0, "the block ends without a grid_dependency_wait(): what launches next would not wait for the kernels ahead");
  }
  --live_;
  if (block.barrier.arrived > 0 && block.barrier.arrived == block.live) complete_barrier(block);
  if (cluster_barrier.arrived > 0 && cluster_barrier.arrived == live_) complete_cluster_barrier();
}

void Engine::enqueue(Warp& warp) {
  if (warp.queued) return;
  warp.queued = true;
  queue_.push_back(&warp);
}

void Engine::wake(Fiber& thread) {
  thread.state = Fiber::State::kReady;
  thread.warp->ready |= 1u << thread.lane;
  enqueue(*thread.warp);
}

void Engine::block_here(const char* waits_in, uintptr_t pc) {
  Fiber& thread = self();
  thread.state = Fiber::State::kBlocked;
  thread.waits_in = waits_in;
  thread.waits_at = pc;
  thread.warp->ready &= ~(1u << thread.lane);
  switch_context(thread.context, scheduler_);
}

// Whether all waiting lanes of `mask` wait in this operation. Two lanes that wait for each other in different places
// are an error; a lane that waits for others only may come here later.
bool Engine::may_meet(const Warp& warp, const WarpOp& op, uint32_t mask, uintptr_t pc) {
  bool same = true;
  for (uint32_t rest = warp.waiting & mask; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    if (warp.ops[lane] == &op && warp.masks[lane] == mask) continue;
    same = false;
    if (warp.masks[lane] >> self().lane & 1) {
      fail(pc, "lanes of a warp diverge: lane " + std::to_string(self().lane) + " is in " + op.name + ", lane " +
                   std::to_string(lane) + " waits in " + warp.ops[lane]->name +
                   (warp.ops[lane] == &op ? " with another mask" : "") + " at " + where(warp.lanes[lane]->waits_at));
    }
  }
  return same;
}

void Engine::warp_collective(const WarpOp& op, uint32_t mask, void* argument, uintptr_t pc) {
  Fiber& thread = self();
  Warp& warp = *thread.warp;
  const uint32_t bit = 1u << thread.lane;
  if (!(mask & bit)) fail(pc, std::string(op.name) + ": the calling lane is not in its own mask");
  const uint32_t absent = mask & (~warp.exists | warp.exited);
  if (absent) {
    const int lane = __builtin_ctz(absent);
    fail(pc, std::string(op.name) + " waits for lane " + std::to_string(lane) + " of its warp, which " +
                 (warp.exists >> lane & 1 ? "has ended" : "does not exist: the block has no such thread"));
  }
  const uint32_t others = warp.waiting & mask;
  bool complete = others == (mask & ~bit);
  if (others == 0) {
    warp.uniform = warp.waiting == 0;
  } else if (const int lane = __builtin_ctz(others);
             !warp.uniform || warp.ops[lane] != &op || warp.masks[lane] != mask) {
    warp.uniform = false;
    complete &= may_meet(warp, op, mask, pc);
  }
  warp.arguments[thread.lane] = argument;
  if (!complete) {
    warp.waiting |= bit;
    warp.ops[thread.lane] = &op;
    warp.masks[thread.lane] = mask;
    block_here(op.name, pc);
    return;
  }
  void* arguments[kWarpSize] = {};
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    arguments[lane] = warp.arguments[lane];
  }
  if (op.orders_memory) {
    Clock clock;
    bool met = false;
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      clocks.release(warp.lanes[__builtin_ctz(rest)]->index, clock);
      met |= warp.lanes[__builtin_ctz(rest)]->dependency_met;
    }
    for (uint32_t rest = mask; rest; rest &= rest - 1) {
      clocks.acquire(warp.lanes[__builtin_ctz(rest)]->index, clock);
      warp.lanes[__builtin_ctz(rest)]->dependency_met = met;
    }
  }
  if (op.perform) op.perform(arguments, mask);
  warp.waiting &= ~mask;
  for (uint32_t rest = mask & ~bit; rest; rest &= rest - 1) wake(*warp.lanes[__builtin_ctz(rest)]);
}

void Engine::barrier_wait(int predicate, const std::source_location& where, uintptr_t pc) {
  Fiber& thread = self();
  Block& block = *thread.block;
  Barrier& barrier = block.barrier;
  if (barrier.arrived == 0) {
    barrier.first = &thread;
    barrier.where = where;
    barrier.clock.generation = 0;
    barrier.dependency_met = false;
  } else if (barrier.where.line() != where.line() || std::strcmp(barrier.where.file_name(), where.file_name()) != 0) {
    fail(pc, "divergent barrier: this thread is at the __syncthreads of line " + std::to_string(where.line()) +
                 ", thread " + thread_name(*barrier.first) + " at that of line " +
                 std::to_string(barrier.where.line()));
  }
  clocks.release(thread.index, barrier.clock);
  barrier.dependency_met |= thread.dependency_met;
  barrier.nonzero += predicate != 0;
  ++barrier.arrived;
  barrier.waiting.push_back(&thread);
  if (barrier.arrived == block.live) {
    complete_barrier(block);
  } else {
    block_here("__syncthreads", pc);
  }
}

void Engine::complete_barrier(Block& block) {
  Barrier& barrier = block.barrier;
  ++counters.block_barriers;
  barrier.result[static_cast<int>(Reduce::kCount)] = barrier.nonzero;
  barrier.result[static_cast<int>(Reduce::kAnd)] = barrier.nonzero == barrier.arrived;
  barrier.result[static_cast<int>(Reduce::kOr)] = barrier.nonzero > 0;
  if (blocks.size() == 1) {
    clocks.all_meet(next_generation());
  } else {
    for (Fiber* thread : barrier.waiting) clocks.acquire(thread->index, barrier.clock);
  }
  for (Fiber* thread : barrier.waiting) {
    thread->dependency_met |= barrier.dependency_met;
    if (thread->state == Fiber::State::kBlocked) wake(*thread);
  }
  barrier.arrived = 0;
  barrier.nonzero = 0;
  barrier.waiting.clear();
}

void Engine::cluster_arrive(uintptr_t pc) {
  Fiber& thread = self();
  if (thread.cluster_arrived) fail(pc, "cluster_arrive without a cluster_wait since the last one");
  thread.cluster_arrived = true;
  if (cluster_barrier.arrived == 0) cluster_barrier.arriving.generation = 0;
  clocks.release(thread.index, cluster_barrier.arriving);
  if (++cluster_barrier.arrived == live_) complete_cluster_barrier();
}

void Engine::complete_cluster_barrier() {
  ++counters.cluster_barriers;
  cluster_barrier.arrived = 0;
  std::swap(cluster_barrier.completed, cluster_barrier.arriving);
  ++cluster_barrier.phase;
  for (Fiber* thread : cluster_barrier.waiting) wake(*thread);
  cluster_barrier.waiting.clear();
}

void Engine::cluster_wait(uintptr_t pc) {
  Fiber& thread = self();
  if (!thread.cluster_arrived) fail(pc, "cluster_wait without a cluster_arrive before it");
  if (thread.cluster_phase == cluster_barrier.phase) {
    cluster_barrier.waiting.push_back(&thread);
    block_here("the cluster's barrier", pc);
  }
  thread.cluster_arrived = false;
  thread.cluster_phase = cluster_barrier.phase;
  clocks.acquire(thread.index, cluster_barrier.completed);
}

std::string Engine::thread_name(const Fiber& thread) const {
  std::string name = to_text(thread.thread_idx);
  return blocks.size() > 1 ? name + " of block " + to_text(thread.block->index) : name;
}

std::string Engine::where(uintptr_t pc) const { return source_line(pc); }

void Engine::fail(uintptr_t pc, const std::string& what) {
  Fiber& thread = self();
  error_ = std::string(launch->kernel) + ", block " + to_text(thread.block->index) + ", thread " +
           to_text(thread.thread_idx) + ", " + source_line_of_caller(pc) + ": " + what;
  leave_context(thread.context, scheduler_);
}

void Engine::deadlock() {
  struct Group {
    const Fiber* first;
    int threads;
  };
  std::map<std::pair<std::string, uintptr_t>, Group> groups;
  int exited = 0;
  for (const Fiber& thread : fibers_) {
    if (thread.state == Fiber::State::kExited) {
      ++exited;
    } else {
      ++groups.try_emplace({thread.waits_in, thread.waits_at}, Group{&thread, 0}).first->second.threads;
    }
  }
  error_ = std::string(launch->kernel) + ", block " + to_text(blocks[0].index) +
           ": deadlock or divergent barrier, no thread can go on:";
  for (const auto& [key, group] : groups) {
    error_ += " " + std::to_string(group.threads) + " threads, the first " + thread_name(*group.first) + ", wait in " +
              key.first + " at " + where(key.second) + ";";
  }
  error_ += " " + std::to_string(exited) + " have ended";
}

}  // namespace dsn::simt
