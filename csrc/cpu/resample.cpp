// subsample, max_pool, avg_pool, pool_sums: what has no weights.
#include <numeric>

#include "worker.h"

namespace dsn::cpu {
namespace {

// Pixels of a window, along one side, that lie in the map or in the zeros around it, as many behind it as before.
int64_t padded(int64_t size, int64_t first, int64_t window, int64_t pad) {
  return std::min(first + window, size + pad) - first;
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
  w.team().phase(to.tiles(), [&](int64_t t) {
    const int valid = w.valid(to, t);
    float* tile = w.state(in.dst) + (t * to.channels + in.out_offset) * kTile;
    std::vector<int64_t> place;  // in the source, of the pixels of each window
    int64_t end[kTile];          // of each window's places
    float count[kTile];          // of the pixels that an average is of
    for (int q = 0; q < valid; ++q) {
      const int64_t top = (t * kTile + q) / to.width * in.stride - in.pad_rows,
                    left = (t * kTile + q) % to.width * in.stride - in.pad_columns;
      for (int64_t k = 0; k < in.taps; ++k) {
        const int64_t y = top + k / in.columns, x = left + k % in.columns;
        if (y < 0 || x < 0 || y >= from.height || x >= from.width) continue;
        const int64_t pixel = y * from.width + x;
        place.push_back(pixel / kTile * from.channels * kTile + pixel % kTile);
      }
      end[q] = static_cast<int64_t>(place.size());
      count[q] =
          static_cast<float>(in.flags & kCountPadding ? padded(from.height, top, in.taps / in.columns, in.pad_rows) *
                                                            padded(from.width, left, in.columns, in.pad_columns)
                                                      : end[q] - (q ? end[q - 1] : 0));
    }
    for (int64_t c = 0; c < in.in_channels; ++c) {
      if (!keep[c]) continue;
      const float* src = w.state(in.src) + (in.src_offset + c) * kTile;
      float* dst = tile + c * kTile;
      for (int q = 0; q < valid; ++q) {
        const int64_t first = q ? end[q - 1] : 0;
        float value = src[place[first]];
        for (int64_t k = first + 1; k < end[q]; ++k)
          value = average ? value + src[place[k]] : std::max(value, src[place[k]]);
        dst[q] = average ? value / count[q] : value;
      }
      std::fill(dst + valid, dst + kTile, 0.f);
    }
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
        for (int c : w.live[in.src].channels) sums[c] = std::accumulate(tile + c * kTile, tile + (c + 1) * kTile, 0.f);
      },
      [&] { w.pool(in.src, 0, in.in_channels); });
}

}  // namespace dsn::cpu
