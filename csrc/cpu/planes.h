// The rows of a map that a window slides over, laid out so that each of its taps reads pixels side by side.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "worker.h"

namespace dsn::cpu {

// With stride s some rows of a channel's map fall into s x s planes, of every s-th row and column from one of the first
// s on, or fewer where the window has fewer; `around` stands around the map.
class Planes {
 public:
  // band: rows of the output at a time; channels: that are laid out at a time
  Planes(const Instruction& in, const BufferSpec& from, const BufferSpec& to, int64_t band, int64_t channels,
         float around = 0)
      : band(std::min(band, to.height)),
        width(to.width + (extent(in.columns, in) - 1) / in.stride),
        in_(in),
        reach_(extent(in.taps / in.columns, in)),
        height_(to.height),
        around_(around) {
    const int64_t window_rows = in.taps / in.columns;
    const int64_t down = std::min(in.stride, reach_), across = std::min(in.stride, extent(in.columns, in));
    const int64_t rows = this->band + (reach_ - 1) / in.stride;
    const int64_t plane = rows * width + kAlign;  // behind a row a vector more is written
    auto place = [&](int64_t y, int64_t x) {      // of row y and column x, what stands before the map included
      return static_cast<int>((y % in.stride * across + x % in.stride) * plane + y / in.stride * width + x / in.stride);
    };
    for (int64_t y = 0; y < window_rows; ++y)
      for (int64_t x = 0; x < in.columns; ++x) taps.push_back(place(y * in.dilation, x * in.dilation));
    for_pieces(from, [&](int64_t pixel, int64_t y, int64_t first, int64_t count) {
      while (static_cast<int64_t>(first_fill_.size()) <= y) first_fill_.push_back(fills_.size());
      const int64_t row = y + in.pad_rows;
      if (row < 0 || row % in.stride >= down) return;
      const int64_t end = std::min(first + count + in.pad_columns, width * in.stride);
      int64_t column = std::max<int64_t>(first + in.pad_columns, 0);
      for (int64_t last = std::min(column + in.stride, end); column < last; ++column) {
        if (column % in.stride >= across) continue;
        const int64_t at = pixel + column - in.pad_columns - first;
        fills_.push_back({static_cast<int>(at / kTile * from.channels * kTile + at % kTile), place(row, column),
                          static_cast<int>(ceil_div(end - column, in.stride))});
      }
    });
    for_pieces(to, [&](int64_t pixel, int64_t y, int64_t first, int64_t count) {
      while (static_cast<int64_t>(first_range_.size()) <= y) first_range_.push_back(ranges_.size());
      ranges_.push_back({static_cast<int>(y * width + first),
                         static_cast<int>(pixel / kTile * to.channels * kTile + pixel % kTile),
                         static_cast<int>(count)});
    });
    first_fill_.push_back(fills_.size());
    first_range_.push_back(ranges_.size());
    size = down * across * plane + kAlign;
    values_.resize(channels * size + kTile, around);  // whole vectors are read
  }

  // What rows [first, last) of the output read of some channels of a state, those of `channels`, `around` where that is
  // negative; relu(scale x + shift) of it unless scale is null.
  void fill(const Kernels& kernel, const float* state, std::span<const int> channels, int64_t first, int64_t last,
            const float* scale = nullptr, const float* shift = nullptr) {
    const auto height = static_cast<int64_t>(first_fill_.size()) - 1;
    const int64_t top = first * in_.stride - in_.pad_rows, end = top + (last - first - 1) * in_.stride + reach_;
    // Rows that the map does not have; where all of it is laid out at a time, nothing else is ever written there.
    if (last - first < height_ && (top < 0 || end > height)) std::fill(values_.begin(), values_.end(), around_);
    Spread s{};
    s.src = state;
    s.src_stride = kTile;
    s.channels = channels.data();
    s.count = static_cast<int>(channels.size());
    s.stride = static_cast<int>(in_.stride);
    s.scale = scale;
    s.shift = shift;
    s.around = around_;
    s.dst = values_.data() - first * width;
    s.dst_stride = size;
    const size_t stop = first_fill_[std::min(end, height)];
    for (size_t i = first_fill_[std::max<int64_t>(top, 0)]; i < stop; i += kRanges) {
      s.ranges = fills_.data() + i;
      s.range_count = static_cast<int>(std::min<size_t>(stop - i, kRanges));
      kernel.spread(s);
    }
  }

  // Where the planes of a channel that was filled last would begin if they had all rows before `first` too.
  const float* at(int64_t channel, int64_t first) const { return values_.data() + channel * size - first * width; }

  // Of rows [first, last) of the output, from a plane.
  std::span<const PixelRange> ranges(int64_t first, int64_t last) const {
    return {ranges_.data() + first_range_[first], first_range_[last] - first_range_[first]};
  }

  // Ranges that are worked on at a time: the channels of a tile are neighbours in memory.
  static constexpr size_t kRanges = 16;
  const int64_t band, width;  // width: of a plane
  int64_t size;               // floats from channel to channel
  std::vector<int> taps;      // where each finds the first output's pixel

 private:
  // Pixels from a window's first row, or column, to its last.
  static int64_t extent(int64_t taps, const Instruction& in) { return (taps - 1) * in.dilation + 1; }

  // Calls visit(pixel, row, column, count) for the pieces of a map's rows that lie in one tile.
  template <class Visit>
  static void for_pieces(const BufferSpec& map, Visit visit) {
    for (int64_t y = 0, pixel = 0; y < map.height; ++y)
      for (int64_t x = 0, count; x < map.width; x += count, pixel += count) {
        count = std::min(map.width - x, kTile - pixel % kTile);
        visit(pixel, y, x, count);
      }
  }

  const Instruction& in_;
  const int64_t reach_;   // rows of the source that a window spans
  const int64_t height_;  // of the output
  const float around_;
  std::vector<PixelRange> fills_, ranges_;        // fills: from the source to a plane, there every stride-th pixel
  std::vector<size_t> first_fill_, first_range_;  // of each row of the source, of the output, and behind the last
  std::vector<float> values_;                     // [channel][size]
};

// Slides some channels' windows over rows [first, last) of the output, a few ranges of pixels at a time for all of
// them; slide(s, c) sets what is the channel's own, dst but for its place in the buffer, and calls the kernel.
template <class One>
void slide_channels(const Planes& planes, Slide s, int64_t count, int64_t first, int64_t last, One one) {
  const std::span<const PixelRange> ranges = planes.ranges(first, last);
  for (size_t done = 0; done < ranges.size(); done += Planes::kRanges) {
    s.ranges = ranges.data() + done;
    s.range_count = static_cast<int>(std::min<size_t>(ranges.size() - done, Planes::kRanges));
    for (int64_t c = 0; c < count; ++c) {
      s.plane = planes.at(c, first);
      one(s, c);
    }
  }
}

// Pixels of the output and neighbouring channels of it that are worked on at a time: what they read stays in the second
// cache.
constexpr int64_t kBandPixels = 512, kBandChannels = 16;
inline int64_t band_rows(const BufferSpec& to) { return std::max<int64_t>(kBandPixels / to.width, 1); }

}  // namespace dsn::cpu
