// Global memory: the buffers that kernels may touch, and for each the record of who touched it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace dsn::simt {

constexpr uintptr_t kWord = 4;  // bytes that share a record

// Who touched a word last. Generations number the stretches between block barriers, over all launches, so an old record
// needs no clearing; threads are counted within the cluster; the epoch counts a thread's releases within a generation.
struct Touch {
  uint32_t generation = 0;
  uint32_t thread : 13 = 0;
  uint32_t bytes : 4 = 0;  // which of the word
  uint32_t epoch : 15 = 0;
};

// Records of a range of memory, word by word. `pc` is an offset into the module.
struct Records {
  struct Entry {
    Touch writer;
    Touch reader;        // the first of its generation
    Touch other_reader;  // the latest of another warp, else of another lane
    uint32_t writer_pc = 0;
    uint32_t reader_pc = 0;
    uint32_t other_reader_pc = 0;
    uint32_t in_flight = 0;  // first generation of the cluster whose asynchronous copy to here has not been waited for
    bool atomic = false;     // the write was one
  };
  explicit Records(size_t bytes);
  ~Records();
  Records(const Records&) = delete;
  Entry* entry(size_t offset) { return entries_ + offset / kWord; }

 private:
  Entry* entries_;
  size_t bytes_;
};

struct Region {
  uintptr_t begin;
  uintptr_t end;
  std::string name;
  bool writable;
  int holders = 1;
  std::unique_ptr<Records> records;  // of writable regions
};

// Sorted, disjoint. Changed between launches only.
class Regions {
 public:
  // Adds [begin, begin + bytes); the same range may be added again. Throws std::invalid_argument if it cuts another.
  void add(uintptr_t begin, size_t bytes, const std::string& name, bool writable);
  void remove(uintptr_t begin);
  Region* find(uintptr_t address) const;  // the one that holds the address, or null
  std::string nearest(uintptr_t address) const;

 private:
  std::vector<std::unique_ptr<Region>> regions_;
};
Regions& regions();

}  // namespace dsn::simt
