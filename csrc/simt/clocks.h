// Vector clocks: which accesses of which threads happened before the present of which thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace dsn::simt {

// What has been released to a barrier and not yet acquired by all.
struct Clock {
  uint32_t generation = 0;
  std::vector<uint16_t> epochs;  // [threads]
};

// A generation ends when all threads meet; within one, knowledge[t][u] is the last epoch of u that t has synchronised
// with.
class Clocks {
 public:
  void start(int threads, uint32_t generation) {
    threads_ = threads;
    generation_ = generation;
    epochs_.assign(columns(), 1);
    knowledge_.resize(columns() * columns());
    known_in_.assign(columns(), 0);
  }

  uint32_t generation() const { return generation_; }
  uint16_t epoch(int thread) const { return epochs_[thread]; }

  bool knows(int thread, int other, uint16_t epoch) const {
    return known_in_[thread] == generation_ && knowledge_[thread * columns() + other] >= epoch;
  }

  void all_meet(uint32_t generation) { generation_ = generation; }

  void release(int thread, Clock& into) {
    if (into.generation != generation_) into = {generation_, std::vector<uint16_t>(columns(), 0)};
    if (known_in_[thread] == generation_) raise(into.epochs.data(), row(thread));
    into.epochs[thread] = std::max(into.epochs[thread], epochs_[thread]);
    if (epochs_[thread] < kLastEpoch) ++epochs_[thread];
  }

  void acquire(int thread, const Clock& from) {
    if (from.generation != generation_) return;  // all have met since
    if (known_in_[thread] != generation_) {
      std::fill_n(row(thread), columns(), 0);
      known_in_[thread] = generation_;
    }
    raise(row(thread), from.epochs.data());
  }

 private:
  static constexpr uint16_t kLastEpoch = (1 << 15) - 1;  // beyond it races may go unseen

  size_t columns() const { return static_cast<size_t>(threads_); }
  uint16_t* row(int thread) { return &knowledge_[thread * columns()]; }
  void raise(uint16_t* to, const uint16_t* from) const {
    for (size_t i = 0; i < columns(); ++i) to[i] = std::max(to[i], from[i]);
  }

  int threads_ = 0;
  uint32_t generation_ = 0;
  std::vector<uint16_t> epochs_;
  std::vector<uint16_t> knowledge_;
  std::vector<uint32_t> known_in_;  // generation that a thread's row is of
};

}  // namespace dsn::simt
