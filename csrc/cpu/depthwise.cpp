// depthwise: a convolution of each channel by a window of its own.
#include <algorithm>

#include "flat.h"
#include "planes.h"

namespace dsn::cpu {
namespace {

using namespace listed;

// Tiles that are written at a time for some channels: these are neighbours in memory, tiles lie far apart.
constexpr int64_t kNear = 16;

// A 3x3 or 5x5 that keeps a map's size, or halves it: a tap reads whole tiles' pixels at an offset, and a mask keeps
// those of the tap's row. Two to five times as fast as rows one by one.
class FlatWindows {
 public:
  static bool serve(const Instruction& in, const BufferSpec& from, const BufferSpec& to) {
    const int64_t rows = in.taps / in.columns;
    return rows == in.columns && (rows == 3 || rows == 5) && (in.stride == 1 || in.stride == 2) &&
           to.width == ceil_div(from.width, in.stride) && to.height <= ceil_div(from.height, in.stride);
  }

  FlatWindows(const Instruction& in, const BufferSpec& from, const BufferSpec& to)
      : tiles(std::min(to.tiles(), in.stride == 2 ? kTiles / 2 : kTiles)), in_(in), from_(from), to_(to) {
    auto place = [&](int64_t tap, int64_t pad) {  // plane and pixels in it, along one side
      const int64_t at = tap * in.dilation - pad, plane = in.stride == 2 ? at & 1 : 0;
      return std::pair(plane, (at - plane) / in.stride);
    };
    std::vector<std::pair<int64_t, int64_t>> taps;  // plane and offset
    for (int64_t y = 0; y < in.columns; ++y)
      for (int64_t x = 0; x < in.columns; ++x) {
        const auto [row_plane, row] = place(y, in.pad_rows);
        const auto [column_plane, column] = place(x, in.pad_columns);
        taps.emplace_back(row_plane * 2 + column_plane, row * to.width + column);
        halo_ = std::max(halo_, -taps.back().second);
        behind_ = std::max(behind_, taps.back().second);
      }
    length_ = round_up(halo_ + tiles * kTile + behind_, kAlign);
    for (const auto& [plane, offset] : taps) offsets.push_back(static_cast<int>(plane * length_ + offset));
    for (int64_t x = 0; x < in.columns; ++x) {
      std::vector<uint32_t>& bits = inside_[x];
      for (int64_t column = 0; column < to.width; ++column) {
        const int64_t source = column * in.stride + x * in.dilation - in.pad_columns;
        if (source >= 0 && source < from.width) continue;
        bits.resize(to.tiles(), ~0u);
        for (int64_t q = column; q < to.pixels(); q += to.width) bits[q / kTile] &= ~(1u << q % kTile);
      }
    }
    values_.resize(kChannels * in.stride * in.stride * length_ + 2 * kTile);
  }

  // The channels in `channels` of a state, as the tiles from `first` on read them; zeros for a negative one.
  void fill(const Kernels& kernel, const float* state, std::span<const int> channels, int64_t first) {
    list_.assign(channels.begin(), channels.end());
    for (int& c : list_) c = std::max(c, 0);
    fill_flat(kernel, state, from_, list_, in_.stride, first * kTile - halo_, length_, nullptr, nullptr, values_.data(),
              pieces_);
    for (size_t c = 0; c < channels.size(); ++c)
      if (channels[c] < 0) std::fill_n(values_.begin() + c * channel_stride(), channel_stride(), 0.f);
  }

  // Where a channel that was filled last has the first tile's first pixel.
  const float* at(int64_t channel) const { return values_.data() + channel * channel_stride() + halo_; }
  const uint32_t* inside(int64_t column, int64_t first) const {
    return inside_[column].empty() ? nullptr : inside_[column].data() + first;
  }

  static constexpr int64_t kChannels = 8;  // at a time; with their planes they stay near the first cache
  const int64_t tiles;                     // likewise
  std::vector<int> offsets;

 private:
  static constexpr int64_t kTiles = 32;
  int64_t channel_stride() const { return in_.stride * in_.stride * length_; }

  const Instruction& in_;
  const BufferSpec &from_, &to_;
  int64_t halo_ = 0, behind_ = 0, length_;
  std::vector<uint32_t> inside_[5];
  std::vector<int> list_;
  std::vector<float> values_;
  Pieces pieces_;
};

}  // namespace

void run_depthwise(Worker& w, const Instruction& in) {
  w.live[in.dst].rewrite(static_cast<int>(in.out_offset), static_cast<int>(in.in_channels), nullptr, false);
  if (w.shut(in)) return;
  const BufferSpec &from = w.plan.buffers[in.src], &to = w.plan.buffers[in.dst];
  const Packed p = w.packed(in);
  std::vector<int> channels(in.in_channels, -1);
  for (int c : w.live[in.src].channels)
    if (const int64_t at = c - in.src_offset; at >= 0 && at < in.in_channels) channels[at] = static_cast<int>(at);
  const float* const state = w.state(in.src) + in.src_offset * kTile;
  const bool flat = FlatWindows::serve(in, from, to);
  const int64_t band = flat ? FlatWindows::kChannels : kBandChannels;
  const int64_t chunks = ceil_div(in.in_channels, band), weight_stride = round_up(in.in_channels, kAlign);
  auto chunk = [&](int64_t i) {  // of the channels: the first, and how many
    const int64_t begin = i % chunks * band;
    return std::pair(begin, std::min(band, in.in_channels - begin));
  };

  if (flat) {
    FlatWindows windows(in, from, to);
    w.team().phase(ceil_div(to.tiles(), windows.tiles) * chunks, [&](int64_t i) {
      const int64_t first = i / chunks * windows.tiles, last = std::min(first + windows.tiles, to.tiles());
      const auto [begin, count] = chunk(i);
      windows.fill(w.kernel, state, {channels.data() + begin, size_t(count)}, first);
      FlatWindow f{};
      f.offset = windows.offsets.data();
      f.side = static_cast<int>(in.columns);
      f.weight_stride = weight_stride;
      f.activation = in.activation;
      f.dst_tile = to.channels * kTile;
      for (int64_t t = first; t < last; t += kNear) {
        for (int64_t x = 0; x < in.columns; ++x) f.inside[x] = windows.inside(x, t);
        f.tiles = static_cast<int>(std::min(last - t, kNear));
        f.valid = w.valid(to, t + f.tiles - 1);
        for (int64_t c = begin; c < begin + count; ++c) {
          f.plane = windows.at(c - begin) + (t - first) * kTile;
          f.weight = p[kWeight] + c;
          f.bias = p[kBias][c];
          f.dst = w.state(in.dst) + (t * to.channels + in.out_offset + c) * kTile;
          w.kernel.flat_window(f);
        }
        w.macs += count * in.taps * ((f.tiles - 1) * kTile + f.valid);
      }
    });
    return;
  }

  Planes planes(in, from, to, band_rows(to), std::min(in.in_channels, kBandChannels));
  Slide s{};
  s.offset = planes.taps.data();
  s.weight_stride = weight_stride;
  s.taps = static_cast<int>(in.taps);
  s.activation = in.activation;
  w.team().phase(ceil_div(to.height, planes.band) * chunks, [&](int64_t i) {
    const int64_t first = i / chunks * planes.band, last = std::min(first + planes.band, to.height);
    const auto [begin, count] = chunk(i);
    planes.fill(w.kernel, state, {channels.data() + begin, size_t(count)}, first, last);
    float* const dst = w.state(in.dst) + (in.out_offset + begin) * kTile;
    slide_channels(planes, s, count, first, last, [&, from = begin](Slide& own, int64_t c) {
      own.weight = p[kWeight] + from + c;
      own.bias = p[kBias][from + c];
      own.dst = dst + c * kTile;
      w.kernel.slide(own);
    });
    const int64_t tile = to.tiles() - 1, valid = w.valid(to, tile);
    if (last == to.height && valid < kTile)
      w.kernel.zero_rows(dst + tile * to.channels * kTile + valid, kTile, static_cast<int>(count),
                         static_cast<int>(kTile - valid));
    w.macs += count * in.taps * (last - first) * to.width;
  });
}

}  // namespace dsn::cpu
