// What an engine checks of every access: that it lies within a buffer, is aligned, and is ordered behind the accesses
// of other threads that it conflicts with.
#include <cstring>

#include "simt/engine.h"

extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start;
extern "C" __attribute__((visibility("hidden"))) const char _end;

namespace dsn::simt {
namespace {

bool is_constant_of_module(uintptr_t address) {
  return address >= reinterpret_cast<uintptr_t>(&__ehdr_start) && address < reinterpret_cast<uintptr_t>(&_end);
}

const char* verb(AccessKind kind) {
  return kind == AccessKind::kRead ? "reads" : kind == AccessKind::kWrite ? "writes" : "updates";
}

bool same_moment(const Touch& a, const Touch& b) {
  return a.generation == b.generation && a.thread == b.thread && a.epoch == b.epoch;
}

std::string bytes_at(size_t bytes, const std::string& place) { return std::to_string(bytes) + " bytes at " + place; }

}  // namespace

std::string Engine::place(uintptr_t address, const Region* region) const {
  if (region) return region->name + " + " + std::to_string(address - region->begin);
  const uintptr_t offset = address - shared_begin_;
  std::string text = "shared memory + " + std::to_string(offset % kSharedSlot);
  if (blocks.size() > 1 && offset / kSharedSlot < blocks.size()) {
    text += " of block " + to_text(blocks[offset / kSharedSlot].index);
  }
  return text;
}

std::string Engine::describe(uintptr_t address) const {
  if (address - shared_begin_ < shared_bytes_) return place(address, nullptr);
  if (const Region* region = regions().find(address)) return place(address, region);
  return address - stacks_begin_ < stacks_bytes_ ? "a local variable" : regions().nearest(address);
}

void Engine::global_access(uintptr_t address, size_t bytes, AccessKind kind, uintptr_t pc) {
  Region* region = last_region_;
  if (!region || address < region->begin || address >= region->end) {
    region = regions().find(address);
    if (!region) {
      if (address - reinterpret_cast<uintptr_t>(launch->params) < launch->params_bytes) return;
      if (is_constant_of_module(address)) return;
      fail(pc, std::string(verb(kind)) + " " + std::to_string(bytes) + " bytes out of bounds of global memory, " +
                   regions().nearest(address));
    }
    last_region_ = region;
  }
  if (address + bytes > region->end) {
    fail(pc, std::string(verb(kind)) + " " + bytes_at(bytes, place(address, region)) + ", past the end of its " +
                 std::to_string(region->end - region->begin) + " bytes");
  }
  if (address % bytes && bytes <= 16 && (bytes & (bytes - 1)) == 0) {
    fail(pc, "misaligned: " + std::string(verb(kind)) + " " + bytes_at(bytes, place(address, region)));
  }
  if (kind == AccessKind::kRead) {
    counters.global_load_bytes += static_cast<int64_t>(bytes);
  } else {
    if (!region->writable) fail(pc, std::string(verb(kind)) + " the input " + place(address, region));
    fiber->block->idle = false;
    if (kind == AccessKind::kWrite) {
      counters.global_store_bytes += static_cast<int64_t>(bytes);
    } else {
      ++counters.global_atomics;
    }
  }
  if (region->records && options().check_races) {
    touch(*region->records, region->begin, address, bytes, kind, region, *fiber, pc);
  }
  if (kind == AccessKind::kAtomic) acquired_ = true;
}

void Engine::shared_access(uintptr_t address, size_t bytes, AccessKind kind, uintptr_t pc) {
  if (address % bytes && bytes <= 16 && (bytes & (bytes - 1)) == 0) {
    fail(pc, "misaligned: " + std::string(verb(kind)) + " " + bytes_at(bytes, place(address, nullptr)));
  }
  check_shared(address, bytes, kind, pc);
  switch (kind) {
    case AccessKind::kRead:
      counters.shared_load_bytes += static_cast<int64_t>(bytes);
      break;
    case AccessKind::kWrite:
      counters.shared_store_bytes += static_cast<int64_t>(bytes);
      break;
    case AccessKind::kAtomic:
      ++counters.shared_atomics;
  }
  if (options().check_races) touch(shared_records_, shared_begin_, address, bytes, kind, nullptr, *fiber, pc);
}

void Engine::check_shared(uintptr_t address, size_t bytes, AccessKind kind, uintptr_t pc) {
  const size_t offset = address - shared_begin_;
  const size_t rank = offset / kSharedSlot;
  if (rank >= blocks.size() || offset % kSharedSlot + bytes > static_cast<size_t>(launch->shared_bytes)) {
    fail(pc, std::string(verb(kind)) + " " + bytes_at(bytes, place(address, nullptr)) +
                 ", out of bounds: the block has " + std::to_string(launch->shared_bytes) + " bytes");
  }
  if (blocks[rank].live == 0) {
    fail(pc, std::string(verb(kind)) + " shared memory of block " + to_text(blocks[rank].index) +
                 ", which has ended: a cluster_sync before its end is missing");
  }
}

unsigned char* Engine::shared_pointer(uint32_t address, size_t bytes, AccessKind kind, uintptr_t pc) {
  const uintptr_t pointer = shared_begin_ + address - kSharedBase;
  if (address < kSharedBase || address - kSharedBase >= shared_bytes_) {
    fail(pc, "0x" + std::to_string(address) + " is not a shared address");
  }
  check_shared(pointer, bytes, kind, pc);
  return reinterpret_cast<unsigned char*>(pointer);
}

uint32_t Engine::shared_address(const void* pointer, uintptr_t pc) {
  const uintptr_t offset = reinterpret_cast<uintptr_t>(pointer) - shared_begin_;
  if (offset >= shared_bytes_) fail(pc, "shared_address of a pointer that is not to shared memory");
  return static_cast<uint32_t>(offset) + kSharedBase;
}

void Engine::shared_touch(Fiber& thread, const unsigned char* pointer, size_t bytes, AccessKind kind, uintptr_t pc) {
  if (!options().check_races) return;
  touch(shared_records_, shared_begin_, reinterpret_cast<uintptr_t>(pointer), bytes, kind, nullptr, thread, pc);
}

const char* Engine::unordered(const Touch& touch, const Fiber& thread, bool global) const {
  const uint32_t generation = touch.generation;
  if (generation == clocks.generation()) {
    if (touch.thread == thread.index || clocks.knows(thread.index, touch.thread, touch.epoch)) return nullptr;
    return "with no barrier between";
  }
  if (!global) return nullptr;
  const uint32_t other = generation >> kGenerationBits;
  if (static_cast<int>(other) == number_ && generation >= cluster_generation_) return nullptr;
  if (generation >= grid_->first_generation[other]) {
    return acquired_ ? nullptr : "in another block of this launch";
  }
  if (!thread.dependency_met && generation >= grid_->chain_generation[other]) {
    return "in a kernel that may still run: grid_dependency_wait() comes later or is missing";
  }
  return nullptr;
}

void Engine::touch(Records& records, uintptr_t begin, uintptr_t address, size_t bytes, AccessKind kind,
                   const Region* region, Fiber& thread, uintptr_t pc) {
  const auto module_pc = static_cast<uint32_t>(pc - reinterpret_cast<uintptr_t>(&__ehdr_start));
  const bool reads = kind == AccessKind::kRead;
  const bool atomic = kind == AccessKind::kAtomic;
  Touch mine;
  mine.generation = clocks.generation();
  mine.thread = static_cast<uint32_t>(thread.index);
  mine.epoch = clocks.epoch(thread.index);

  // Of shared memory only this generation matters, of global memory other blocks and launches too.
  const auto may_conflict = [&, everything = region != nullptr](const Touch& other) {
    return other.generation == mine.generation || (everything && other.generation);
  };
  const auto conflict = [&](uintptr_t at, const Touch& other, const char* did, uint32_t other_pc, const char* why) {
    std::string who = "another block";
    if (other.generation == clocks.generation()) {
      who = "thread " + thread_name(fibers_[other.thread]);
    }
    const std::string line = where(other_pc + reinterpret_cast<uintptr_t>(&__ehdr_start));
    fail(pc, "race: " + (&thread == fiber ? "" : "for thread " + thread_name(thread) + ", ") + verb(kind) + " " +
                 bytes_at(bytes, place(at, region)) + ", which " + who + " " + did + " at " + line + ", " + why);
  };

  const uintptr_t end = address + bytes;
  begin &= ~(kWord - 1);
  for (uintptr_t at = address & ~(kWord - 1); at < end; at += kWord) {
    Records::Entry& entry = *records.entry(at - begin);
    mine.bytes = 0xf;
    if (at < address) mine.bytes &= 0xf << (address - at);
    if (end - at < kWord) mine.bytes &= 0xf >> (kWord - (end - at));
    if (entry.in_flight == cluster_generation_) {
      fail(pc, std::string(verb(kind)) + " " + bytes_at(bytes, place(at, region)) +
                   ", where an asynchronous copy started at " +
                   where(entry.writer_pc + reinterpret_cast<uintptr_t>(&__ehdr_start)) + " has not been waited for");
    }
    const Touch writer = entry.writer;
    if (may_conflict(writer) && !same_moment(writer, mine) && !(atomic && entry.atomic) &&
        (writer.bytes & mine.bytes)) {
      if (const char* why = unordered(writer, thread, region)) conflict(at, writer, "wrote", entry.writer_pc, why);
    }
    if (reads) {
      if (entry.reader.generation != mine.generation || entry.reader.thread == mine.thread) {
        if (entry.reader.generation != mine.generation) entry.other_reader = {};
        if (same_moment(entry.reader, mine)) mine.bytes |= entry.reader.bytes;
        entry.reader = mine;
        entry.reader_pc = module_pc;
      } else if (entry.other_reader.generation == 0 || entry.reader.thread / kWarpSize != mine.thread / kWarpSize) {
        entry.other_reader = mine;
        entry.other_reader_pc = module_pc;
      }
      continue;
    }
    for (const auto& [reader, reader_pc] :
         {std::pair(entry.reader, entry.reader_pc), std::pair(entry.other_reader, entry.other_reader_pc)}) {
      if (!may_conflict(reader) || !(reader.bytes & mine.bytes)) continue;
      if (const char* why = unordered(reader, thread, region)) conflict(at, reader, "read", reader_pc, why);
    }
    if (same_moment(entry.writer, mine)) mine.bytes |= entry.writer.bytes;
    entry.writer = mine;
    entry.writer_pc = module_pc;
    entry.atomic = atomic;
  }
}

void Engine::start_copy(Fiber& thread, const AsyncCopy& copy) {
  const auto destination = reinterpret_cast<uintptr_t>(copy.destination);
  shared_touch(thread, copy.destination, copy.bytes, AccessKind::kWrite, copy.pc);
  for (size_t i = 0; i < copy.bytes; i += kWord) {
    shared_records_.entry(destination - shared_begin_ + i)->in_flight = cluster_generation_;
  }
  std::memset(copy.destination, 0xff, copy.bytes);
}

void Engine::land(const AsyncCopy& copy) {
  const auto destination = reinterpret_cast<uintptr_t>(copy.destination);
  std::memcpy(copy.destination, copy.source, copy.from_source);
  std::memset(copy.destination + copy.from_source, 0, copy.bytes - copy.from_source);
  Touch mine;
  mine.generation = clocks.generation();
  mine.thread = static_cast<uint32_t>(self().index);
  mine.epoch = clocks.epoch(self().index);
  mine.bytes = 0xf;
  for (size_t i = 0; i < copy.bytes; i += kWord) {
    Records::Entry& entry = *shared_records_.entry(destination - shared_begin_ + i);
    entry.in_flight = 0;
    entry.writer = mine;
    entry.atomic = false;
  }
}

}  // namespace dsn::simt
