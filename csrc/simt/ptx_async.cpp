// Twins of what runs beside the threads: asynchronous copies, mbarriers, clusters, dependent launches. A copy's data
// arrives as late as the model allows: when somebody waits for it.
#include <cstring>

#include "simt/engine.h"
#include "simt/ptx_twins.h"

namespace dsn::ptx {
namespace {

using namespace simt;

void check_alignment(Engine& e, const char* what, uintptr_t to, uintptr_t from, size_t bytes, size_t alignment,
                     uintptr_t pc) {
  if (to % alignment || from % alignment || bytes % alignment) {
    e.fail(pc, std::string(what) + " of " + std::to_string(bytes) +
                   " bytes: source, destination and size must be multiples of " + std::to_string(alignment));
  }
}

// The landing of all but the `pending` latest groups.
template <class Land>
void wait_groups(CopyGroups& groups, int pending, Land land) {
  while (static_cast<int>(groups.committed.size()) > pending) {
    for (const AsyncCopy& copy : groups.committed.front()) land(copy);
    groups.committed.erase(groups.committed.begin());
  }
}

void commit(CopyGroups& groups) {
  groups.committed.push_back(std::move(groups.open));
  groups.open.clear();
}

std::string shared_place(uint32_t address) {
  return "shared memory + " + std::to_string((address - kSharedBase) % kSharedSlot);
}

MBarrier& find_mbarrier(Engine& e, uint32_t address, uintptr_t pc) {
  const auto found = e.mbarriers.find(address);
  if (found == e.mbarriers.end()) e.fail(pc, "no mbarrier has been initialised at " + shared_place(address));
  return found->second;
}

// Ends the phase if all arrivals are in and all expected bytes are on their way; they land now.
bool try_complete(Engine& e, MBarrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return false;
  for (const AsyncCopy& copy : barrier.copies) e.land(copy, e.clocks.async_thread());
  barrier.copies.clear();
  e.clocks.release(e.clocks.async_thread(), barrier.arriving);
  std::swap(barrier.completed, barrier.arriving);
  barrier.arriving.generation = 0;
  barrier.pending = barrier.count;
  ++barrier.phase;
  for (Fiber* thread : barrier.waiting) e.wake(*thread);
  barrier.waiting.clear();
  return true;
}

// An arrival, or bytes issued: somebody may be waiting for just that.
void progress(Engine& e, MBarrier& barrier) {
  if (!barrier.waiting.empty()) try_complete(e, barrier);
}

void issue_to_mbarrier(Engine& e, const AsyncCopy& copy, uint32_t address, uintptr_t pc) {
  MBarrier& barrier = find_mbarrier(e, address, pc);
  e.start_copy(e.self(), copy);
  ++e.counters.bulk_copies;
  e.counters.shared_store_bytes += copy.bytes;
  barrier.copies.push_back(copy);
  barrier.bytes -= copy.bytes;
  progress(e, barrier);
}

uint32_t checked_rank(uint32_t rank, uintptr_t pc) {
  Engine& e = running();
  if (rank >= e.blocks.size()) {
    e.fail(pc, "block " + std::to_string(rank) + " of a cluster of " + std::to_string(e.blocks.size()));
  }
  return rank;
}

void arrive(uint32_t barrier, uint32_t bytes, uintptr_t pc) {
  Engine& e = running();
  MBarrier& found = find_mbarrier(e, barrier, pc);
  e.shared_touch(e.self(), e.shared_pointer(barrier, 8, AccessKind::kRead, pc), 8, AccessKind::kRead, pc);
  if (found.pending == 0 && !try_complete(e, found)) {
    e.fail(pc, "more arrivals than the " + std::to_string(found.count) + " the mbarrier at " + shared_place(barrier) +
                   " was initialised for, while " + std::to_string(found.bytes) + " bytes are missing");
  }
  --found.pending;
  found.bytes += bytes;
  e.clocks.release(e.self().index, found.arriving);
  progress(e, found);
}

}  // namespace

uint32_t shared_address(const void* pointer) { return running().shared_address(pointer, DSN_SIMT_CALLER); }

// ---- cp.async ----
template <int kBytes>
void cp_async(uint32_t destination, const void* source, int from_source) {
  Engine& e = running();
  const uintptr_t pc = DSN_SIMT_CALLER;
  constexpr int bytes = kBytes;
  const auto from = reinterpret_cast<uintptr_t>(source);
  if (from_source < 0 || from_source > bytes) {
    e.fail(pc, "cp.async of " + std::to_string(bytes) + " bytes, " + std::to_string(from_source) + " from its source");
  }
  check_alignment(e, "cp.async", destination, from, bytes, bytes, pc);
  if (from_source > 0) e.global_access(from, from_source, AccessKind::kRead, pc);
  unsigned char* to = e.shared_pointer(destination, bytes, AccessKind::kWrite, pc);
  const AsyncCopy copy{to, static_cast<const unsigned char*>(source), static_cast<uint32_t>(bytes),
                       static_cast<uint32_t>(from_source), pc};
  e.start_copy(e.self(), copy);
  ++e.counters.cp_async;
  e.counters.shared_store_bytes += bytes;
  e.self().copies.open.push_back(copy);
}

template void cp_async<4>(uint32_t, const void*, int);
template void cp_async<8>(uint32_t, const void*, int);
template void cp_async<16>(uint32_t, const void*, int);

void cp_async_commit() { commit(running().self().copies); }

void cp_async_wait_pending(int pending) {
  Engine& e = running();
  wait_groups(e.self().copies, pending, [&](const AsyncCopy& copy) { e.land(copy, e.self().index); });
}

// ---- named barriers ----
void barrier_sync(int id, int threads) { running().barrier_arrive(id, threads, true, 0, nullptr, DSN_SIMT_CALLER); }

void barrier_arrive(int id, int threads) { running().barrier_arrive(id, threads, false, 0, nullptr, DSN_SIMT_CALLER); }

// ---- dependent launches: kernels run one after another here, and what they touch too early is found by its record
// ----
void grid_dependency_wait() {
  Fiber& thread = running().self();
  thread.dependency_met = true;
  thread.block->waited = true;
}

void grid_launch_dependents() { running(); }

// ---- clusters ----
uint32_t cluster_rank() { return static_cast<uint32_t>(running().self().block->rank); }
uint32_t cluster_size() { return static_cast<uint32_t>(running().blocks.size()); }
void cluster_arrive() { running().cluster_arrive(DSN_SIMT_CALLER); }
void cluster_wait() { running().cluster_wait(DSN_SIMT_CALLER); }

uint32_t map_shared(uint32_t address, uint32_t rank) {
  return checked_rank(rank, DSN_SIMT_CALLER) * kSharedSlot + (address - kSharedBase) % kSharedSlot + kSharedBase;
}

void* map_shared(const void* pointer, uint32_t rank) {
  Engine& e = running();
  const uint32_t address = e.shared_address(pointer, DSN_SIMT_CALLER);
  return e.blocks[checked_rank(rank, DSN_SIMT_CALLER)].shared + (address - kSharedBase) % kSharedSlot;
}

// ---- mbarrier ----
void mbarrier_init(uint32_t barrier, uint32_t count) {
  Engine& e = running();
  const uintptr_t pc = DSN_SIMT_CALLER;
  check_alignment(e, "mbarrier", barrier, 0, 8, 8, pc);
  const unsigned char* place = e.shared_pointer(barrier, 8, AccessKind::kWrite, pc);
  if (count == 0) e.fail(pc, "mbarrier_init with a count of 0");
  e.shared_touch(e.self(), place, 8, AccessKind::kWrite, pc);
  e.mbarriers[barrier] = MBarrier{count, count, {}, {}, {}, {}, {}, {}};
}

void fence_mbarrier_init() { running(); }

void mbarrier_arrive(uint32_t barrier) { arrive(barrier, 0, DSN_SIMT_CALLER); }
void mbarrier_arrive_cluster(uint32_t barrier) { arrive(barrier, 0, DSN_SIMT_CALLER); }
void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) { arrive(barrier, bytes, DSN_SIMT_CALLER); }

void cp_async_mbarrier_arrive(uint32_t barrier) {
  Engine& e = running();
  MBarrier& found = find_mbarrier(e, barrier, DSN_SIMT_CALLER);
  CopyGroups& copies = e.self().copies;
  commit(copies);
  for (const auto& group : copies.committed) found.copies.insert(found.copies.end(), group.begin(), group.end());
  copies.committed.clear();
  arrive(barrier, 0, DSN_SIMT_CALLER);
}

void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  Engine& e = running();
  const uintptr_t pc = DSN_SIMT_CALLER;
  MBarrier& found = find_mbarrier(e, barrier, pc);
  e.shared_touch(e.self(), e.shared_pointer(barrier, 8, AccessKind::kRead, pc), 8, AccessKind::kRead, pc);
  if ((found.phase & 1) == (parity & 1) && !try_complete(e, found)) {
    found.waiting.push_back(&e.self());
    e.block_here("mbarrier_wait", pc);
  }
  e.clocks.acquire(e.self().index, found.completed);
}

// ---- bulk copies ----
void fence_proxy_async() { running().fence_proxy_async(); }

void bulk_load(uint32_t destination, const void* source, uint32_t bytes, uint32_t barrier) {
  Engine& e = running();
  const uintptr_t pc = DSN_SIMT_CALLER;
  const auto from = reinterpret_cast<uintptr_t>(source);
  check_alignment(e, "bulk copy", destination, from, bytes, 16, pc);
  e.global_access(from, bytes, AccessKind::kRead, pc);
  unsigned char* to = e.shared_pointer(destination, bytes, AccessKind::kWrite, pc);
  issue_to_mbarrier(e, {to, static_cast<const unsigned char*>(source), bytes, bytes, pc}, barrier, pc);
}

void bulk_copy_cluster(uint32_t destination, uint32_t source, uint32_t bytes, uint32_t barrier) {
  Engine& e = running();
  const uintptr_t pc = DSN_SIMT_CALLER;
  check_alignment(e, "bulk copy", destination, source, bytes, 16, pc);
  const unsigned char* from = e.shared_pointer(source, bytes, AccessKind::kRead, pc);
  e.shared_touch(e.self(), from, bytes, AccessKind::kRead, pc);
  e.check_fenced(from, bytes, pc);
  e.counters.shared_load_bytes += bytes;
  unsigned char* to = e.shared_pointer(destination, bytes, AccessKind::kWrite, pc);
  issue_to_mbarrier(e, {to, from, bytes, bytes, pc}, barrier, pc);
}

void bulk_store(void* destination, uint32_t source, uint32_t bytes) {
  Engine& e = running();
  const uintptr_t pc = DSN_SIMT_CALLER;
  const auto to = reinterpret_cast<uintptr_t>(destination);
  check_alignment(e, "bulk copy", to, source, bytes, 16, pc);
  const unsigned char* from = e.shared_pointer(source, bytes, AccessKind::kRead, pc);
  e.shared_touch(e.self(), from, bytes, AccessKind::kRead, pc);
  e.check_fenced(from, bytes, pc);
  e.global_access(to, bytes, AccessKind::kWrite, pc);
  ++e.counters.bulk_copies;
  e.counters.shared_load_bytes += bytes;
  e.self().bulk_stores.open.push_back({static_cast<unsigned char*>(destination), from, bytes, bytes, pc});
}

void bulk_commit() { commit(running().self().bulk_stores); }

void bulk_wait_pending(int pending) {
  Engine& e = running();
  wait_groups(e.self().bulk_stores, pending,
              [](const AsyncCopy& copy) { std::memcpy(copy.destination, copy.source, copy.bytes); });
}

}  // namespace dsn::ptx
