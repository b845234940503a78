// Some pixels of a map's channels side by side, as the windows of kernels that keep a map's width read them.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "worker.h"

namespace dsn::cpu {

// Channels whose rows are taken apart at a time: they are neighbours in memory, one alone is read at its latency.
constexpr int kFlatChannels = 16;

// dst[channel][length] = pixels from `start` on, zeros outside of the map; relu(scale x + shift) of them unless scale
// is null. With stride 2 they are pixels of four planes, dst[channel][even, odd rows][even, odd columns][length], of
// rows half as wide. Up to kAlign floats are written behind the last.
inline void fill_flat(const Kernels& kernel, const float* state, const BufferSpec& from, std::span<const int> channels,
                      int64_t stride, int64_t start, int64_t length, const float* scale, const float* shift, float* dst,
                      std::vector<float>& scratch) {
  const auto count = static_cast<int>(channels.size());
  const int64_t width = ceil_div(from.width, stride), planes = stride * stride;
  const int64_t begin = std::clamp<int64_t>(start, 0, ceil_div(from.height, stride) * width);
  const int64_t end = std::clamp<int64_t>(start + length, begin, ceil_div(from.height, stride) * width);
  const auto before = static_cast<int>(begin - start), after = static_cast<int>(start + length - end);
  if (stride == 1) {
    kernel.gather(state, from.channels * kTile, channels.data(), count, static_cast<int>(begin), static_cast<int>(end),
                  scale, shift, dst + before, length);
  } else {
    const int64_t top = begin / width * 2, bottom = std::min(ceil_div(end, width) * 2, from.height);
    const int64_t first = top * from.width, last = bottom * from.width;
    const int64_t row_stride = round_up(last - first, kAlign) + kAlign;
    scratch.resize(kFlatChannels * row_stride + kTile);  // whole vectors are read
    for (int done = 0; done < count; done += kFlatChannels) {
      const int some = std::min(count - done, kFlatChannels);
      kernel.gather(state, from.channels * kTile, &channels[done], some, static_cast<int>(first),
                    static_cast<int>(last), scale, shift, scratch.data(), row_stride);
      for (int c = 0; c < some; ++c)
        for (int64_t row = 0; row < 2; ++row) {
          float* to = dst + ((done + c) * 2 + row) * 2 * length + before;
          kernel.unzip(scratch.data() + c * row_stride + row * from.width, static_cast<int>(from.width),
                       static_cast<int>((bottom - top + 1 - row) / 2), static_cast<int>(begin - top / 2 * width),
                       static_cast<int>(end - begin), to, to + length);
        }
    }
  }
  kernel.zero_rows(dst, length, static_cast<int>(count * planes), before);
  kernel.zero_rows(dst + length - after, length, static_cast<int>(count * planes), after);
}

}  // namespace dsn::cpu
