// A network as a list of instructions, read from its words: what the CPU, the GPU and the host runner share.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <vector>

#include "../common/layout.h"
#include "instruction.h"

namespace dsn {

// The state of a block: its input channels, then one slice per layer.
struct BufferSpec {
  int64_t channels, height, width;
  int64_t pixels() const { return height * width; }
  int64_t values() const { return channels * pixels(); }
  int64_t tiles() const { return ceil_div(pixels(), kTile); }
  bool operator==(const BufferSpec&) const = default;
};

// What grouping samples saves and costs on a CPU, in seconds per byte; zero in a plan of a GPU, which asks for none.
struct Costs {
  double fetch = 0;   // of weights that are not in the second cache
  double pack = 0;    // of weights of which a mask chooses some
  double reload = 0;  // of maps that are not in the second cache, while a convolution reads them
};

// The instructions from `begin` to one before `end`.
struct Region {
  RegionKind kind;
  int64_t begin, end;
};

struct Plan {
  // words: kPlanFormat, the numbers of buffers and of regions and the three costs in attoseconds per byte (a word is
  // an integer), then three words for each buffer and region and kInstructionFields for each instruction. Throws one
  // line, which begins with `op`, if the plan is of another build or would read or write outside its buffers, or what
  // is not written yet. Offsets of weights are the backend's to check: each has layouts of its own.
  Plan(const char* op, const int64_t* words, int64_t count);

  // Throws unless the plan loads such images.
  void check_image(const char* op, const BufferSpec& given) const;
  // Throws unless it has so many gates and logits and stores such a map.
  void check_outputs(const char* op, int64_t given_gates, int64_t given_logits, const BufferSpec& given_map) const;

  Costs costs;
  std::vector<BufferSpec> buffers;
  std::vector<Region> regions;  // in order
  std::vector<Instruction> code;

  BufferSpec image{0, 1, 1};    // what is loaded, several tensors one behind another; no channels if nothing is
  BufferSpec map{0, 1, 1};      // what is stored likewise
  int64_t gates = 0;            // gated layers of all blocks, gated units, filters
  int64_t logits = 0;           // outputs of all heads
  bool needs_masks = false;     // filters are chosen by gates that no instruction decides
  std::vector<int64_t> slices;  // of each instruction: those of its input that may be constants to its BN-ReLU
  // Instructions that share a buffer are one stream, in the plan's order, and so are a gate and what waits for it. Only
  // a guide leads from one stream to another, so that threads or CUDA streams may walk them side by side. Streams are
  // counted as they begin.
  std::vector<int> stream_of;             // of each buffer
  std::vector<std::vector<int>> streams;  // the instructions of each

 private:
  struct Checker;
  void find_streams(const char* op);
};

// What was made from a plan's words and some numbers, such as a batch size: the 64 that were asked for last.
template <class Made>
class MostRecent {
 public:
  // make() builds what is not there yet; others go on meanwhile.
  template <class Make>
  std::shared_ptr<const Made> get(std::initializer_list<int64_t> numbers, const int64_t* words, int64_t count,
                                  const Make& make) {
    {
      std::lock_guard lock(mutex_);
      auto found = std::find_if(kept_.rbegin(), kept_.rend(), [&](const Entry& e) {
        return std::equal(e.numbers.begin(), e.numbers.end(), numbers.begin(), numbers.end()) &&
               std::equal(e.words.begin(), e.words.end(), words, words + count);
      });
      if (found != kept_.rend()) {
        std::rotate(found.base() - 1, found.base(), kept_.end());
        return kept_.back().made;
      }
    }
    Entry entry{numbers, {words, words + count}, make()};
    std::lock_guard lock(mutex_);
    if (kept_.size() == kMost) kept_.erase(kept_.begin());
    kept_.push_back(std::move(entry));
    return kept_.back().made;
  }

 private:
  static constexpr size_t kMost = 64;
  struct Entry {
    std::vector<int64_t> numbers, words;
    std::shared_ptr<const Made> made;
  };
  std::mutex mutex_;
  std::vector<Entry> kept_;  // most recent last
};

}  // namespace dsn
