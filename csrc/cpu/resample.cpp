// subsample, max_pool: maps of another size without weights.
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

void run_max_pool(Worker& w, const Instruction& in) {
  const BufferSpec &from = w.plan.buffers[in.src], &to = w.plan.buffers[in.dst];
  w.live[in.dst].reset(static_cast<int>(in.in_channels));
  w.team().phase(to.tiles(), [&](int64_t t) {
    const int valid = w.valid(to, t);
    float* tile = w.state(in.dst) + t * to.channels * kTile;
    for (int64_t c = 0; c < in.in_channels; ++c) {
      auto at = [&](int64_t pixel) {
        return w.state(in.src)[(pixel / kTile * from.channels + c) * kTile + pixel % kTile];
      };
      for (int q = 0; q < kTile; ++q) {
        if (q >= valid) {
          tile[c * kTile + q] = 0;
          continue;
        }
        const int64_t first = (t * kTile + q) / to.width * 2 * from.width + (t * kTile + q) % to.width * 2;
        tile[c * kTile + q] =
            std::max(std::max(at(first), at(first + 1)), std::max(at(first + from.width), at(first + from.width + 1)));
      }
    }
  });
}

}  // namespace dsn::cpu
