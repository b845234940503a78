// Some pixels of a map's channels side by side, as the windows of kernels that keep a map's width read them.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "worker.h"

namespace dsn::cpu {

// Channels whose rows are taken apart at a time: they are neighbours in memory, one alone is read at its latency.
constexpr int kFlatChannels = 16;

// How the map was taken apart that was filled last, with stride 2.
struct Pieces {
  int64_t start = 0, length = 0;
  std::vector<Alternate> all;
};

// dst[channel][length] = pixels from `start` on, zeros outside of the map; relu(scale x + shift) of them unless scale
// is null. With stride 2 they are pixels of four planes, dst[channel][even, odd rows][even, odd columns][length], of
// rows half as wide. Up to kAlign floats are written behind the last.
inline void fill_flat(const Kernels& kernel, const float* state, const BufferSpec& from, std::span<const int> channels,
                      int64_t stride, int64_t start, int64_t length, const float* scale, const float* shift, float* dst,
                      Pieces& pieces) {
  const auto count = static_cast<int>(channels.size());
  const int64_t width = ceil_div(from.width, stride), planes = stride * stride;
  const int64_t begin = std::clamp<int64_t>(start, 0, ceil_div(from.height, stride) * width);
  const int64_t end = std::clamp<int64_t>(start + length, begin, ceil_div(from.height, stride) * width);
  const auto before = static_cast<int>(begin - start), after = static_cast<int>(start + length - end);
  auto zero = [&](int64_t plane, int64_t first, int64_t some) {
    kernel.zero_rows(dst + plane * length + first, planes * length, count, static_cast<int>(some));
  };
  if (stride == 1) {
    kernel.gather(state, from.channels * kTile, channels.data(), count, static_cast<int>(begin), static_cast<int>(end),
                  scale, shift, dst + before, length);
  } else {
    const bool known = pieces.start == start && pieces.length == length;
    if (!known) pieces = {start, length, {}};
    for (int64_t at = begin, some; !known && at < end; at += some) {  // a row of the planes, or what is asked for of it
      const int64_t row = at / width * 2, column = at % width;
      some = std::min(width - column, end - at);
      for (int64_t y = row; y < std::min(row + 2, from.height); ++y) {
        const int64_t even = (y % 2 * 2) * length + at - start - column, odd = even + length;
        for (int64_t x = 2 * column, last = std::min(2 * (column + some), from.width), n; x < last; x += n) {
          const int64_t pixel = y * from.width + x;
          n = std::min(last - x, kTile - pixel % kTile);
          const int64_t first = (x % 2 ? odd : even) + x / 2, second = x % 2 ? even + x / 2 + 1 : odd + x / 2;
          const int64_t beyond = round_up(ceil_div(n, 2), kAlign);
          const bool whole = first % length + beyond <= length && second % length + beyond <= length;
          pieces.all.push_back({static_cast<int>(pixel / kTile * from.channels * kTile + pixel % kTile),
                                static_cast<int>(n), static_cast<int>(first), static_cast<int>(second), whole});
        }
      }
    }
    for (int done = 0; done < count; done += kFlatChannels)
      kernel.unzip({state, channels.data() + done, std::min(count - done, kFlatChannels), pieces.all.data(),
                    static_cast<int>(pieces.all.size()), scale, shift, dst + done * planes * length, planes * length});
    for (int64_t at = begin, some; at < end; at += some) {  // what the map does not have: a last column, a last row
      const int64_t row = at / width * 2;
      some = std::min(width - at % width, end - at);
      for (int64_t y = row; y < row + 2; ++y) {
        const int64_t plane = y % 2 * 2;
        if (y >= from.height) {
          zero(plane, at - start, some);
          zero(plane + 1, at - start, some);
        } else if (from.width % 2 && at % width + some == width) {
          zero(plane + 1, at - start + some - 1, 1);
        }
      }
    }
  }
  for (int64_t plane = 0; plane < planes; ++plane) {
    zero(plane, 0, before);
    zero(plane, length - after, after);
  }
}

}  // namespace dsn::cpu
