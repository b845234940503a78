// Threads that work on one sample together.
//
// Work is claimed, threads are not counted: a phase is over when its chunks are done, whoever did
// them, so no schedule of the thread pool can deadlock it and results do not depend on it. A chunk
// has a preferred thread, whose cache holds its data; another takes it only if that one is late.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

namespace dsn::cpu {

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// One per phase; zero before the team starts.
struct alignas(64) PhaseFlags {
  std::atomic<uint64_t> claimed{0};
  std::atomic<int> done{0};
  std::atomic<bool> finished{false};
};

class Team {
 public:
  static constexpr int kMaxSize = 64;

  Team() = default;  // a thread alone
  Team(int rank, int size, PhaseFlags* flags) : rank_(rank), size_(size), flags_(flags) {}

  bool alone() const { return size_ == 1; }
  int rank() const { return rank_; }

  // Calls work(i) for i in [0, items) over the team, then finish() once; returns when both are done.
  template <class Work, class Finish>
  void phase(int64_t items, const Work& work, const Finish& finish) {
    if (alone()) {
      for (int64_t i = 0; i < items; ++i) work(i);
      finish();
      return;
    }
    PhaseFlags& flags = *flags_++;
    take(flags, rank_, items, work, finish);
    for (int spins = 0; !flags.finished.load(std::memory_order_acquire); ++spins) {
      if (spins == kPatience)
        for (int i = 1; i < size_; ++i) take(flags, (rank_ + i) % size_, items, work, finish);
      spins < kSpins ? cpu_relax() : std::this_thread::yield();
    }
  }
  template <class Work>
  void phase(int64_t items, const Work& work) {
    phase(items, work, [] {});
  }

 private:
  static constexpr int kPatience = 400;  // pauses before taking a late thread's chunk: some microseconds
  static constexpr int kSpins = 20000;

  template <class Work, class Finish>
  void take(PhaseFlags& flags, int chunk, int64_t items, const Work& work, const Finish& finish) {
    uint64_t bit = uint64_t{1} << chunk;
    if (flags.claimed.fetch_or(bit, std::memory_order_acq_rel) & bit) return;
    for (int64_t i = items * chunk / size_; i < items * (chunk + 1) / size_; ++i) work(i);
    if (flags.done.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      finish();
      flags.finished.store(true, std::memory_order_release);
    }
  }

  int rank_ = 0;
  int size_ = 1;
  PhaseFlags* flags_ = nullptr;
};

}  // namespace dsn::cpu
