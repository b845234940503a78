// subsample, max_pool, avg_pool, pool_sums: what has no weights.
#include <limits>
#include <span>

#include "planes.h"

namespace dsn::cpu {
namespace {

// Pixels of a window from `first` on, along one side, that an average is of: those in the map or, where they count,
// in the zeros around it, as many behind it as before.
int64_t counted(int64_t size, int64_t first, int64_t window, int64_t pad, const Instruction& in) {
  if (in.flags & kCountPadding) return std::min(first + window, size + pad) - first;
  return std::min(first + window, size) - std::max<int64_t>(first, 0);
}

// The average of a whole map: a vector's lanes are summed on their own, so that the rounding error of a large map is
// that of a short sum.
void average_all(Worker& w, const Instruction& in, std::span<const int> channels) {
  const BufferSpec& from = w.plan.buffers[in.src];
  w.team().phase(ceil_div(std::ssize(channels), kBandChannels), [&](int64_t i) {
    const auto own =
        channels.subspan(i * kBandChannels, std::min(kBandChannels, std::ssize(channels) - i * kBandChannels));
    std::vector<float> part(in.in_channels), total(own.size());
    for (int64_t t = 0; t < from.tiles(); ++t) {
      const float* tile = w.state(in.src) + (t * from.channels + in.src_offset) * kTile;
      w.kernel.row_sums(tile, own.data(), static_cast<int>(own.size()), part.data());
      for (size_t c = 0; c < own.size(); ++c) total[c] += part[own[c]];
    }
    for (size_t c = 0; c < own.size(); ++c) {
      float* const dst = w.state(in.dst) + (in.out_offset + own[c]) * kTile;
      std::fill_n(dst, kTile, 0.f);
      *dst = total[c] / static_cast<float>(from.pixels());
    }
  });
}

void pool(Worker& w, const Instruction& in) {
  const BufferSpec &from = w.plan.buffers[in.src], &to = w.plan.buffers[in.dst];
  const bool average = in.op == Op::kAvgPool;
  // A channel holds data if its source does and its mask is on.
  const Live& held = w.live[in.src];
  std::vector<uint8_t> keep(in.in_channels, 0);
  for (int c : held.channels)
    if (const int64_t at = c - in.src_offset; at >= 0 && at < in.in_channels)
      keep[at] = in.out_mask < 0 || w.sample.taken[in.out_mask + at];
  w.live[in.dst].rewrite(static_cast<int>(in.out_offset), static_cast<int>(in.in_channels),
                         in.out_mask >= 0 || held.slices ? keep.data() : nullptr, w.compiled.normalised[in.dst]);
  if (w.shut(in)) return;
  std::vector<int> channels;  // that hold data
  for (int c = 0; c < in.in_channels; ++c)
    if (keep[c]) channels.push_back(c);
  if (average && in.columns == from.width && in.taps == from.pixels() && to.pixels() == 1 && in.pad_rows == 0 &&
      in.pad_columns == 0)
    return average_all(w, in, channels);
  Planes planes(in, from, to, band_rows(to), std::min(in.in_channels, kBandChannels),
                average ? 0.f : -std::numeric_limits<float>::infinity());
  std::vector<float> divisor;  // of each pixel of the output, in a plane's rows
  if (average) {
    divisor.resize(to.height * planes.width + kTile, 1.f);
    for (int64_t y = 0; y < to.height; ++y)
      for (int64_t x = 0; x < to.width; ++x)
        divisor[y * planes.width + x] = static_cast<float>(
            counted(from.height, y * in.stride - in.pad_rows, in.taps / in.columns, in.pad_rows, in) *
            counted(from.width, x * in.stride - in.pad_columns, in.columns, in.pad_columns, in));
  }
  Slide s{};
  s.offset = planes.taps.data();
  s.taps = static_cast<int>(in.taps);
  s.divisor = average ? divisor.data() : nullptr;
  const auto all = static_cast<int64_t>(channels.size()), chunks = ceil_div(all, kBandChannels);
  w.team().phase(ceil_div(to.height, planes.band) * chunks, [&](int64_t i) {
    const int64_t first = i / chunks * planes.band, last = std::min(first + planes.band, to.height);
    const int64_t begin = i % chunks * kBandChannels, count = std::min(kBandChannels, all - begin);
    const std::span<const int> own(channels.data() + begin, static_cast<size_t>(count));
    planes.fill(w.kernel, w.state(in.src) + in.src_offset * kTile, own, first, last);
    float* const dst = w.state(in.dst) + in.out_offset * kTile;
    slide_channels(planes, s, count, first, last, [&](Slide& window, int64_t c) {
      window.dst = dst + own[c] * kTile;
      w.kernel.pool(window);
    });
    const int64_t tile = to.tiles() - 1, valid = w.valid(to, tile);
    if (last == to.height && valid < kTile)
      for (int c : own)
        w.kernel.zero_rows(dst + (tile * to.channels + c) * kTile + valid, kTile, 1, static_cast<int>(kTile - valid));
  });
}

}  // namespace

void run_subsample(Worker& w, const Instruction& in) {
  const BufferSpec &from = w.plan.buffers[in.src], &to = w.plan.buffers[in.dst];
  w.live[in.dst].reset(static_cast<int>(in.out_channels));
  w.team().phase(
      to.tiles(),
      [&](int64_t t) {
        const int valid = w.valid(to, t);
        float* tile = w.state(in.dst) + t * to.channels * kTile;
        float* sums = w.sums(in.dst) + t * to.channels;
        std::fill_n(tile, in.out_channels * kTile, 0.f);
        std::fill_n(sums, in.out_channels, 0.f);
        for (int q = 0; q < valid; ++q) {
          const int64_t y = (t * kTile + q) / to.width * in.stride, x = (t * kTile + q) % to.width * in.stride;
          const int64_t pixel = y * from.width + x;
          const float* src = w.state(in.src) + pixel / kTile * from.channels * kTile + pixel % kTile;
          for (int64_t c = 0; c < in.in_channels; ++c) {
            const float value = src[c * kTile];
            tile[(in.out_offset + c) * kTile + q] = value;
            sums[in.out_offset + c] += value;
          }
        }
      },
      [&] { w.pool(in.dst, 0, in.out_channels); });
}

void run_max_pool(Worker& w, const Instruction& in) { pool(w, in); }

void run_avg_pool(Worker& w, const Instruction& in) { pool(w, in); }

void run_pool_sums(Worker& w, const Instruction& in) {
  if (w.shut(in)) return;
  const BufferSpec& map = w.plan.buffers[in.src];
  w.team().phase(
      map.tiles(),
      [&](int64_t t) {
        const float* tile = w.state(in.src) + t * map.channels * kTile;
        float* sums = w.sums(in.src) + t * map.channels;
        std::fill_n(sums, in.in_channels, 0.f);
        w.kernel.row_sums(tile, w.live[in.src].channels.data(), w.live[in.src].count(), sums);
      },
      [&] { w.pool(in.src, 0, in.in_channels); });
}

}  // namespace dsn::cpu
