// depthwise: a convolution of each channel by a window of its own.
#include <algorithm>
#include <span>

#include "worker.h"

namespace dsn::cpu {
namespace {

using namespace listed;

// Pixels of the output and neighbouring channels that are worked on at a time: what they read stays in the second
// cache. The channels of a tile are neighbours in memory, so it is read and written a few ranges of pixels at a time
// for all of these channels.
constexpr int64_t kBandPixels = 512, kBandChannels = 16, kRanges = 16;

// How some rows of a channel's map are laid out for the window. With stride s it falls into s x s planes, of every s-th
// row and column from one of the first s on, or fewer where the window has fewer; zeros stand around the map. A
// window's tap then reads the pixels of an output row side by side.
class Planes {
 public:
  Planes(const Instruction& in, const BufferSpec& from, const BufferSpec& to)
      : band(std::clamp<int64_t>(kBandPixels / to.width, 1, to.height)),
        in_(in),
        reach_(extent(in.taps / in.columns, in)),
        width_(to.width + (extent(in.columns, in) - 1) / in.stride) {
    const int64_t window_rows = in.taps / in.columns;
    const int64_t down = std::min(in.stride, reach_), across = std::min(in.stride, extent(in.columns, in));
    const int64_t rows = band + (reach_ - 1) / in.stride;
    auto place = [&](int64_t y, int64_t x) {  // of row y and column x, the zeros before the map included
      const int64_t plane = y % in.stride * across + x % in.stride;
      return static_cast<int>((plane * rows + y / in.stride) * width_ + x / in.stride);
    };
    for (int64_t y = 0; y < window_rows; ++y)
      for (int64_t x = 0; x < in.columns; ++x) taps.push_back(place(y * in.dilation, x * in.dilation));
    for_pieces(from, [&](int64_t pixel, int64_t y, int64_t first, int64_t count) {
      while (static_cast<int64_t>(first_fill_.size()) <= y) first_fill_.push_back(fills_.size());
      const int64_t row = y + in.pad_rows;
      if (row < 0 || row % in.stride >= down) return;
      const int64_t end = std::min(first + count + in.pad_columns, width_ * in.stride);
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
      ranges_.push_back({static_cast<int>(y * width_ + first),
                         static_cast<int>(pixel / kTile * to.channels * kTile + pixel % kTile),
                         static_cast<int>(count)});
    });
    first_fill_.push_back(fills_.size());
    first_range_.push_back(ranges_.size());
    size_ = round_up(down * across * rows * width_, kAlign) + kAlign;
    values_.resize(std::min(in.in_channels, kBandChannels) * size_ + kTile);  // whole vectors are read
  }

  // What rows [first, last) of the output read of `count` channels from `begin` on of a state; zeros of one that holds
  // no data.
  void fill(const float* state, const uint8_t* holds, int64_t begin, int64_t count, int64_t first, int64_t last) {
    const auto height = static_cast<int64_t>(first_fill_.size()) - 1;
    const int64_t top = first * in_.stride - in_.pad_rows, end = top + (last - first - 1) * in_.stride + reach_;
    if (top < 0 || end > height) std::fill(values_.begin(), values_.end(), 0.f);  // rows that the map does not have
    for (size_t i = first_fill_[std::max<int64_t>(top, 0)]; i < first_fill_[std::min(end, height)]; ++i)
      for (int64_t c = begin; c < begin + count; ++c) {
        const float* src = state + c * kTile + fills_[i].from;
        float* to = values_.data() + (c - begin) * size_ + fills_[i].to - first * width_;
        if (!holds[c])
          std::fill_n(to, fills_[i].count, 0.f);
        else if (in_.stride == 1)
          std::copy_n(src, fills_[i].count, to);
        else
          for (int64_t k = 0; k < fills_[i].count; ++k) to[k] = src[k * in_.stride];
      }
  }

  // Where the planes of a channel that was filled last would begin if they had all rows before `first` too.
  const float* at(int64_t channel, int64_t first) const { return values_.data() + channel * size_ - first * width_; }

  // Of rows [first, last) of the output, from a plane.
  std::span<const PixelRange> ranges(int64_t first, int64_t last) const {
    return {ranges_.data() + first_range_[first], first_range_[last] - first_range_[first]};
  }

  const int64_t band;     // rows of the output at a time
  std::vector<int> taps;  // where each finds the first output's pixel

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
  const int64_t reach_;                           // rows of the source that a window spans
  const int64_t width_;                           // of a plane
  std::vector<PixelRange> fills_, ranges_;        // fills: from the source to a plane, there every stride-th pixel
  std::vector<size_t> first_fill_, first_range_;  // of each row of the source, of the output, and behind the last
  std::vector<float> values_;                     // of a few channels, [channel][size]
  int64_t size_;
};

}  // namespace

void run_depthwise(Worker& w, const Instruction& in) {
  w.live[in.dst].rewrite(static_cast<int>(in.out_offset), static_cast<int>(in.in_channels), nullptr, false);
  if (w.shut(in)) return;
  const BufferSpec &from = w.plan.buffers[in.src], &to = w.plan.buffers[in.dst];
  const Packed p = w.packed(in);
  std::vector<uint8_t> holds(in.in_channels, 0);
  for (int c : w.live[in.src].channels)
    if (c >= in.src_offset && c < in.src_offset + in.in_channels) holds[c - in.src_offset] = 1;
  Planes planes(in, from, to);
  Slide s{};
  s.offset = planes.taps.data();
  s.weight_stride = round_up(in.in_channels, kAlign);
  s.taps = static_cast<int>(in.taps);
  s.activation = in.activation;
  const int64_t chunks = ceil_div(in.in_channels, kBandChannels);
  w.team().phase(ceil_div(to.height, planes.band) * chunks, [&](int64_t i) {
    const int64_t first = i / chunks * planes.band, last = std::min(first + planes.band, to.height);
    const std::span<const PixelRange> ranges = planes.ranges(first, last);
    const int64_t begin = i % chunks * kBandChannels, end = std::min(begin + kBandChannels, in.in_channels);
    planes.fill(w.state(in.src) + in.src_offset * kTile, holds.data(), begin, end - begin, first, last);
    for (size_t done = 0; done < ranges.size(); done += kRanges)
      for (int64_t c = begin; c < end; ++c) {
        Slide own = s;
        own.plane = planes.at(c - begin, first);
        own.weight = p[kWeight] + c;
        own.bias = p[kBias][c];
        own.ranges = ranges.data() + done;
        own.range_count = static_cast<int>(std::min<size_t>(ranges.size() - done, kRanges));
        own.dst = w.state(in.dst) + (in.out_offset + c) * kTile;
        w.kernel.slide(own);
      }
    const int64_t tile = to.tiles() - 1, valid = w.valid(to, tile);
    for (int64_t c = begin; c < end && last == to.height; ++c)
      std::fill_n(w.state(in.dst) + (tile * to.channels + in.out_offset + c) * kTile + valid, kTile - valid, 0.f);
    w.macs += (end - begin) * in.taps * (last - first) * to.width;
  });
}

}  // namespace dsn::cpu
