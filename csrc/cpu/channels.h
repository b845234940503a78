// Which channels of a buffer hold data, and which filters of a convolution run.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace dsn::cpu {

// The channels of a buffer that hold data; the slices that do not.
struct Live {
  std::vector<int> channels;
  std::vector<int> skipped;
  int slices = 0;  // skippable ones, skipped or not

  void reset(int count) {
    channels.clear();
    append(0, count);
    skipped.clear();
    slices = 0;
  }
  void append(int begin, int count) {
    for (int c = begin; c < begin + count; ++c) channels.push_back(c);
  }
  // The channels from `begin` on are written anew. With `keep`, each is a slice of its own and holds data where that is
  // 1; `list`: somebody asks which do not. No branch on a mask, which would be wrong half of the time.
  void rewrite(int begin, int count, const uint8_t* keep, bool list) {
    if (begin == 0) reset(0);
    while (!channels.empty() && channels.back() >= begin) channels.pop_back();
    if (!keep) return append(begin, count);
    auto pick = [&](std::vector<int>& chosen, int first, uint8_t value) {
      size_t n = chosen.size();
      chosen.resize(n + static_cast<size_t>(count) + 1);
      for (int i = 0; i < count; ++i) {
        chosen[n] = first + i;
        n += keep[i] == value;
      }
      chosen.resize(n);
    };
    pick(channels, begin, 1);
    if (list) pick(skipped, slices, 0);
    slices += count;
  }
  int count() const { return static_cast<int>(channels.size()); }
};

// The filters that a mask chose, as a thread has prepared them last: their biases and, in the thread's memory, their
// weights for the live inputs. A next sample that chooses alike takes them as they are.
struct Selection {
  std::vector<int> filters;
  std::vector<float> bias;  // [filters, padded]
  bool packed = false;      // the weights are there too

  // Whether it is that of this convolution, these filters and these inputs; if not it is begun anew for them.
  bool holds(const void* convolution, const uint8_t* mask, int count, const int* sources, int source_count) {
    const bool same = convolution_ == convolution && std::equal(mask_.begin(), mask_.end(), mask, mask + count) &&
                      std::equal(sources_.begin(), sources_.end(), sources, sources + source_count);
    if (same) return true;
    convolution_ = convolution;
    mask_.assign(mask, mask + count);
    sources_.assign(sources, sources + source_count);
    packed = false;
    return false;
  }

 private:
  const void* convolution_ = nullptr;
  std::vector<uint8_t> mask_;
  std::vector<int> sources_;
};

}  // namespace dsn::cpu
