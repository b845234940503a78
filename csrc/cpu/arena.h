// Working memory of the CPU kernels, kept between calls: fresh pages cost more than a small network.
#pragma once

#include <sys/mman.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace dsn::cpu {

class Arena {
 public:
  explicit Arena(int64_t floats) : block_(take(floats)) {}
  ~Arena() { give_back(block_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  float* data() const { return static_cast<float*>(block_.memory); }

 private:
  struct Block {
    void* memory;
    int64_t floats;
  };
  static constexpr size_t kHugePage = size_t{1} << 21;
  static constexpr size_t kKept = 64;

  struct Pool {
    std::mutex mutex;
    std::vector<Block> free;
  };
  static Pool& pool() {
    static auto* pool = new Pool;  // outlives every thread
    return *pool;
  }

  static Block take(int64_t floats) {
    Pool& p = pool();
    {
      std::lock_guard lock(p.mutex);
      for (size_t i = p.free.size(); i-- > 0;)
        if (p.free[i].floats >= floats) {
          Block block = p.free[i];
          p.free.erase(p.free.begin() + static_cast<std::ptrdiff_t>(i));
          return block;
        }
      for (Block& small : p.free) std::free(small.memory);  // a larger network is running now
      p.free.clear();
    }
    const size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + kHugePage - 1) / kHugePage * kHugePage;
    void* memory = std::aligned_alloc(kHugePage, bytes);
    if (!memory) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    madvise(memory, bytes, MADV_HUGEPAGE);  // a hint: 4 KiB pages are correct too
#endif
    return {memory, static_cast<int64_t>(bytes / sizeof(float))};
  }

  static void give_back(Block block) {
    Pool& p = pool();
    std::lock_guard lock(p.mutex);
    if (p.free.size() < kKept)
      p.free.push_back(block);
    else
      std::free(block.memory);
  }

  Block block_;
};

}  // namespace dsn::cpu
