// Threads that work on one sample together.
//
// Work is claimed, threads are not counted: a phase is over when its chunks are done, whoever did
// them, so no schedule of the thread pool can deadlock it and results do not depend on it. A chunk
// has a preferred thread, whose cache holds its data; another takes it if that one has not joined
// yet (it may still be busy with a sample, or a branch, of its own) or is late. A thread that finds itself alone claims
// several phases at once, and does them as it would without a team.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace dsn::cpu {

inline void cpu_relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// `finished` is polled, so it has a cache line of its own.
struct PhaseFlags {
  alignas(64) std::atomic<uint64_t> claimed{0};
  std::atomic<int> done{0};
  alignas(64) std::atomic<bool> finished{false};
};

// What the threads of a team share: one for each sample and stream.
struct TeamState {
  explicit TeamState(int64_t phases) : flags(static_cast<size_t>(phases)) {}
  std::atomic<uint64_t> joined{0};
  std::vector<PhaseFlags> flags;
};

class Team {
 public:
  static constexpr int kMaxSize = 64;

  Team() = default;  // a thread alone
  Team(int rank, int size, TeamState& state) : rank_(rank), size_(size), state_(&state) {}

  // Before the first phase.
  void join() { state_->joined.fetch_or(uint64_t{1} << rank_, std::memory_order_relaxed); }

  bool alone() const { return size_ == 1; }
  int rank() const { return rank_; }
  int size() const { return size_; }

  // Calls work(i) for i in [0, items) over the team, then finish() once; returns when both are done.
  template <class Work, class Finish>
  void phase(int64_t items, const Work& work, const Finish& finish) {
    if (alone()) {
      for (int64_t i = 0; i < items; ++i) work(i);
      finish();
      return;
    }
    PhaseFlags& flags = state_->flags[static_cast<size_t>(next_phase_++)];
    take(flags, rank_, items, work, finish);
    const auto start = std::chrono::steady_clock::now();
    bool patient = true;
    for (int spins = 1; !flags.finished.load(std::memory_order_acquire); ++spins) {
      // The clock costs some pauses, so it is read now and then.
      if (patient && spins % 16 == 0) patient = std::chrono::steady_clock::now() - start < kPatience;
      const uint64_t joined = patient ? state_->joined.load(std::memory_order_relaxed) : 0;
      for (int i = 1; i < size_; ++i) {
        const int other = (rank_ + i) % size_;
        if (!(joined >> other & 1)) take(flags, other, items, work, finish);
      }
      patient ? cpu_relax() : std::this_thread::yield();
    }
  }
  template <class Work>
  void phase(int64_t items, const Work& work) {
    phase(items, work, [] {});
  }

  // Calls work() in place of the next `phases` phases if no other thread is here; returns whether it did.
  template <class Work>
  bool alone_for(int phases, const Work& work) {
    if (alone()) {
      work();
      return true;
    }
    PhaseFlags* flags = &state_->flags[static_cast<size_t>(next_phase_)];
    uint64_t unclaimed = 0;
    if (state_->joined.load(std::memory_order_relaxed) != uint64_t{1} << rank_ ||
        !flags->claimed.compare_exchange_strong(unclaimed, ~uint64_t{0}, std::memory_order_acq_rel))
      return false;
    work();
    for (int i = phases; i-- > 0;) {  // the first last: no other thread is past it
      flags[i].claimed.store(~uint64_t{0}, std::memory_order_relaxed);
      flags[i].finished.store(true, std::memory_order_release);
    }
    next_phase_ += phases;
    return true;
  }

  // Passes the next `phases` phases if others have finished them; returns whether it did.
  bool late_for(int phases) {
    if (alone() ||
        !state_->flags[static_cast<size_t>(next_phase_ + phases - 1)].finished.load(std::memory_order_acquire))
      return false;
    next_phase_ += phases;
    return true;
  }

 private:
  static constexpr std::chrono::microseconds kPatience{50};  // several phases of a small map

  template <class Work, class Finish>
  void take(PhaseFlags& flags, int chunk, int64_t items, const Work& work, const Finish& finish) {
    uint64_t bit = uint64_t{1} << chunk;
    if (flags.claimed.load(std::memory_order_relaxed) & bit) return;
    if (flags.claimed.fetch_or(bit, std::memory_order_acq_rel) & bit) return;
    for (int64_t i = items * chunk / size_; i < items * (chunk + 1) / size_; ++i) work(i);
    if (flags.done.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      finish();
      flags.finished.store(true, std::memory_order_release);
    }
  }

  int rank_ = 0;
  int size_ = 1;
  TeamState* state_ = nullptr;
  int64_t next_phase_ = 0;
};

}  // namespace dsn::cpu
