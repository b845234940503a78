// preact_conv2d: a transition, BN-ReLU-1x1-average-pool, with an optional guide behind its input.
// The pool goes first: it commutes with the 1x1 and leaves a quarter of its work.
#include <cstring>

#include "worker.h"

namespace dsn::cpu {
namespace {

using namespace transition;

// Half-pixel centres (align_corners=False).
struct BilinearTaps {
  BilinearTaps(int64_t from, int64_t to) : low(to), high(to), weight(to) {
    const float scale = static_cast<float>(from) / static_cast<float>(to);
    const int last = static_cast<int>(from) - 1;
    for (int64_t i = 0; i < to; ++i) {
      const float centre = std::max(0.f, (static_cast<float>(i) + 0.5f) * scale - 0.5f);
      low[i] = std::min(static_cast<int>(centre), last);
      high[i] = std::min(low[i] + 1, last);
      weight[i] = centre - static_cast<float>(low[i]);
    }
  }
  Taps taps() const { return {low.data(), high.data(), weight.data()}; }
  std::vector<int> low, high;
  std::vector<float> weight;
};

}  // namespace

void run_transition(Worker& w, const Instruction& in) {
  const BufferSpec &from = w.plan.buffers[in.src], &to = w.plan.buffers[in.dst];
  const bool guided = in.guide >= 0;
  const Live* sources[2] = {&w.live[in.src], guided ? &w.live[in.guide] : nullptr};
  const int64_t guide_channels = guided ? w.plan.buffers[in.guide].channels : 0;
  const int64_t channels = in.in_channels + guide_channels;

  std::vector<int> channel;  // the live ones of source and guide, as the weights count them
  std::vector<int> skipped;
  int slices = 0;
  for (int s = 0; s < 1 + guided; ++s) {
    const int shift = s ? static_cast<int>(in.in_channels) : 0;
    for (int c : sources[s]->channels) channel.push_back(c + shift);
    for (int slice : sources[s]->skipped) skipped.push_back(slices + slice);
    slices += sources[s]->slices;
  }

  const Packed p = w.packed(in);
  const int64_t rows = padded_rows(in.out_channels);
  std::vector<float> bias(rows, 0.f);
  for (int slice : skipped)
    for (int64_t m = 0; m < rows; ++m) bias[m] += p[kConstants][slice * rows + m];

  const auto planes = static_cast<int64_t>(channel.size());
  const BufferSpec& small = guided ? w.plan.buffers[in.guide] : from;
  const BilinearTaps columns(small.width, from.width), lines(small.height, from.height);
  w.live[in.dst].reset(static_cast<int>(in.out_channels));
  w.team().phase(
      to.tiles(),
      [&](int64_t t) {
        float* tile = w.scratch();  // [live channel][kTile]
        float* planes_scratch = tile + (planes + 1) * kTile;
        float *plane = planes_scratch, *wide = plane + w.memory.plane_stride, *rest = wide + w.memory.plane_stride;
        const int valid = w.valid(to, t);
        // The pairs of rows that the tile's pixels come from; `skip` pixels of the first belong to the tile before.
        const int first = static_cast<int>(t * kTile / to.width),
                  last = static_cast<int>((t * kTile + valid - 1) / to.width + 1);
        const int width = static_cast<int>(from.width), skip = static_cast<int>(t * kTile - first * to.width);
        for (int64_t i = 0; i < planes; ++i) {
          const int c = channel[i];
          const float* src = w.state(in.src) + c * kTile;
          int64_t stride = from.channels * kTile;
          int begin = 2 * first * width;
          if (c >= in.in_channels) {
            w.kernel.copy_rows(w.state(in.guide) + (c - in.in_channels) * kTile, small.channels * kTile, rest, kTile,
                               static_cast<int>(small.tiles()), kTile);
            w.kernel.bilinear(rest, static_cast<int>(small.width), width, columns.taps(), lines.taps(), 2 * first,
                              2 * last, wide, plane);
            src = plane;
            stride = kTile;
            begin = 0;
          }
          float* dst = tile + i * kTile;
          if (skip == 0) {
            w.kernel.normalise_pool(src, stride, begin, width, valid, p[kScale][c], p[kShift][c], rest, dst);
          } else {
            w.kernel.normalise_pool(src, stride, begin, width, skip + valid, p[kScale][c], p[kShift][c], rest, wide);
            std::memcpy(dst, wide + skip, valid * sizeof(float));
          }
        }
        ConvTile c{};
        c.src = tile;
        c.src_stride = kTile;
        w.set_weights(c, p[kWeight], channels, in.out_channels, 1);
        c.live = channel.data();
        c.live_count = static_cast<int>(planes);
        c.valid = valid;
        c.bias = bias.data();
        c.dst = w.state(in.dst) + t * to.channels * kTile;
        c.dst_stride = kTile;
        c.sums = w.sums(in.dst) + t * to.channels;
        w.conv(c, 1);
      },
      [&] { w.pool(in.dst, 0, in.out_channels); });
}

}  // namespace dsn::cpu
