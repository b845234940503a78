// Twins of what runs beside the threads: asynchronous copies, clusters, dependent launches. A copy's data arrives as
// late as the model allows: when somebody waits for it.
#include <cstring>

#include "simt/engine.h"
#include "simt/ptx_twins.h"

namespace dsn::ptx {
namespace {

using namespace simt;

uint32_t checked_rank(uint32_t rank, uintptr_t pc) {
  Engine& e = running();
  if (rank >= e.blocks.size()) {
    e.fail(pc, "block " + std::to_string(rank) + " of a cluster of " + std::to_string(e.blocks.size()));
  }
  return rank;
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
  if (destination % bytes || from % bytes) {
    e.fail(pc, "cp.async of " + std::to_string(bytes) + " bytes: source and destination must be multiples of it");
  }
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

void cp_async_commit() {
  CopyGroups& groups = running().self().copies;
  groups.committed.push_back(std::move(groups.open));
  groups.open.clear();
}

void cp_async_wait_pending(int pending) {
  Engine& e = running();
  auto& committed = e.self().copies.committed;
  while (static_cast<int>(committed.size()) > pending) {
    for (const AsyncCopy& copy : committed.front()) e.land(copy);
    committed.erase(committed.begin());
  }
}

// ---- dependent launches: kernels run one after another here, and what they touch too early is found by its record
// ----
void grid_dependency_wait() {
  Fiber& thread = running().self();
  thread.dependency_met = true;
  thread.block->waited = true;
}

void grid_launch_dependents() { running(); }

// ---- clusters ----
void cluster_arrive() { running().cluster_arrive(DSN_SIMT_CALLER); }
void cluster_wait() { running().cluster_wait(DSN_SIMT_CALLER); }

void* map_shared(const void* pointer, uint32_t rank) {
  Engine& e = running();
  const uint32_t address = e.shared_address(pointer, DSN_SIMT_CALLER);
  return e.blocks[checked_rank(rank, DSN_SIMT_CALLER)].shared + (address - kSharedBase) % kSharedSlot;
}

}  // namespace dsn::ptx
