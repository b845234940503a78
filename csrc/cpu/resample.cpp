// subsample, max_pool, avg_pool, add: what has no weights.
#include <numeric>

#include "worker.h"

namespace dsn::cpu {

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

void run_pool(Worker& w, const Instruction& in) {
  const BufferSpec &from = w.plan.buffers[in.src], &to = w.plan.buffers[in.dst];
  const bool average = in.op == Op::kAvgPool;
  w.live[in.dst].reset(static_cast<int>(in.in_channels));
  w.team().phase(to.tiles(), [&](int64_t t) {
    const int valid = w.valid(to, t);
    float* tile = w.state(in.dst) + t * to.channels * kTile;
    int64_t place[kTile][4];  // in the source, of the four pixels behind each
    for (int q = 0; q < valid; ++q) {
      const int64_t first = (t * kTile + q) / to.width * 2 * from.width + (t * kTile + q) % to.width * 2;
      for (int k = 0; k < 4; ++k) {
        const int64_t pixel = first + k / 2 * from.width + k % 2;
        place[q][k] = pixel / kTile * from.channels * kTile + pixel % kTile;
      }
    }
    for (int64_t c = 0; c < in.in_channels; ++c) {
      const float* src = w.state(in.src) + c * kTile;
      float* dst = tile + c * kTile;
      for (int q = 0; q < valid; ++q) {
        const float a = src[place[q][0]], b = src[place[q][1]], d = src[place[q][2]], e = src[place[q][3]];
        dst[q] = average ? 0.25f * ((a + b) + (d + e)) : std::max(std::max(a, b), std::max(d, e));
      }
      std::fill(dst + valid, dst + kTile, 0.f);
    }
  });
}

void run_pool_sums(Worker& w, const Instruction& in) {
  const BufferSpec& map = w.plan.buffers[in.src];
  w.team().phase(
      map.tiles(),
      [&](int64_t t) {
        const float* tile = w.state(in.src) + t * map.channels * kTile;
        for (int64_t c = 0; c < in.in_channels; ++c)
          w.sums(in.src)[t * map.channels + c] = std::accumulate(tile + c * kTile, tile + (c + 1) * kTile, 0.f);
      },
      [&] { w.pool(in.src, 0, in.in_channels); });
}

void run_add(Worker& w, const Instruction& in) {
  const BufferSpec &from = w.plan.buffers[in.src], &to = w.plan.buffers[in.dst];
  w.team().phase(to.tiles(), [&](int64_t t) {
    const float* src = w.state(in.src) + (t * from.channels + in.src_offset) * kTile;
    float* dst = w.state(in.dst) + (t * to.channels + in.out_offset) * kTile;
    for (int64_t i = 0; i < in.in_channels * kTile; ++i) dst[i] += src[i];
  });
}

}  // namespace dsn::cpu
