// preact_conv2d: a transition, BN-ReLU-1x1-average-pool, with an optional guide behind its input.
// The pool goes first: it commutes with the 1x1 and leaves a quarter of its work.
#include <cstring>

#include "worker.h"

namespace dsn::cpu {
namespace {

using namespace transition;

// Bilinear resize of one channel, half-pixel centres (align_corners=False).
class Upsample {
 public:
  Upsample(const BufferSpec& from, const BufferSpec& to)
      : from(from), to(to), columns(taps(from.width, to.width)), rows(taps(from.height, to.height)), wide(from.height * to.width) {}

  // Rows [first, last) of the result.
  void operator()(const float* src, int64_t first, int64_t last, float* dst) {
    for (int64_t y = rows[first].low; y <= rows[last - 1].high; ++y)
      for (int64_t x = 0; x < to.width; ++x) {
        const Tap& t = columns[x];
        wide[y * to.width + x] = src[y * from.width + t.low] * (1 - t.weight) + src[y * from.width + t.high] * t.weight;
      }
    for (int64_t y = first; y < last; ++y, dst += to.width) {
      const Tap& t = rows[y];
      const float *low = wide.data() + t.low * to.width, *high = wide.data() + t.high * to.width;
      for (int64_t x = 0; x < to.width; ++x) dst[x] = low[x] * (1 - t.weight) + high[x] * t.weight;
    }
  }

 private:
  struct Tap {
    int64_t low, high;
    float weight;
  };
  static std::vector<Tap> taps(int64_t from, int64_t to) {
    std::vector<Tap> result(to);
    const float scale = static_cast<float>(from) / static_cast<float>(to);
    for (int64_t i = 0; i < to; ++i) {
      const float centre = std::max(0.f, (static_cast<float>(i) + 0.5f) * scale - 0.5f);
      const auto low = std::min(static_cast<int64_t>(centre), from - 1);
      result[i] = {low, std::min(low + 1, from - 1), centre - static_cast<float>(low)};
    }
    return result;
  }
  const BufferSpec &from, &to;
  std::vector<Tap> columns, rows;
  std::vector<float> wide;
};

// Copies the tiles that hold pixels [begin, end) of a channel; returns where `begin` is in dst.
const float* gather(const Worker& w, int64_t buffer, int64_t channel, int64_t begin, int64_t end, float* dst) {
  const int64_t first = begin / kTile, channels = w.plan.buffers[buffer].channels;
  w.kernel.copy_rows(w.state(buffer) + (first * channels + channel) * kTile, channels * kTile, dst, kTile,
                     static_cast<int>(ceil_div(end, kTile) - first), kTile);
  return dst + (begin - first * kTile);
}

}  // namespace

void run_transition(Worker& w, const Instruction& in) {
  const BufferSpec &from = w.plan.buffers[in.src], &to = w.plan.buffers[in.dst];
  const bool guided = in.guide >= 0;
  const Live* sources[2] = {&w.live[in.src], guided ? &w.live[in.guide] : nullptr};
  const int64_t guide_channels = guided ? w.plan.buffers[in.guide].channels : 0;
  const int64_t channels = in.in_channels + guide_channels;

  std::vector<Run> runs;     // live channels of source and guide, as the weights count them
  std::vector<int> channel;  // of each live plane
  std::vector<int> skipped;
  int64_t slices = 0;
  for (int s = 0; s < 1 + guided; ++s) {
    const int shift = s ? static_cast<int>(in.in_channels) : 0;
    for (const Run& r : sources[s]->runs) {
      runs.push_back({r.begin + shift, r.count});
      for (int c = 0; c < r.count; ++c) channel.push_back(r.begin + shift + c);
    }
    for (int slice : sources[s]->skipped) skipped.push_back(static_cast<int>(slices) + slice);
    slices += sources[s]->slices;
  }

  const Packed p(w.weights, in.weights, layout(channels, in.out_channels, slices));
  const int64_t rows = padded_rows(in.out_channels);
  std::vector<float> bias(rows, 0.f);
  for (int slice : skipped)
    for (int64_t m = 0; m < rows; ++m) bias[m] += p[kConstants][slice * rows + m];

  const auto planes = static_cast<int64_t>(channel.size());
  std::vector<Upsample> upsample;
  if (guided) upsample.emplace_back(w.plan.buffers[in.guide], from);
  w.live[in.dst].reset(static_cast<int>(in.out_channels));
  w.team.phase(
      to.tiles(),
      [&](int64_t t) {
        float* tile = w.scratch();  // [live channel][kTile]
        float* plane = tile + planes * kTile;
        float* other = plane + w.memory.plane_stride;
        const int valid = w.valid(to, t);
        const int64_t first_row = t * kTile / to.width, last_row = (t * kTile + valid - 1) / to.width + 1;
        const int64_t begin = 2 * first_row * from.width, end = 2 * last_row * from.width;
        const int64_t skip = t * kTile - first_row * to.width;
        for (int64_t i = 0; i < planes; ++i) {
          const int c = channel[i];
          const float* src;
          if (c < in.in_channels) {
            src = gather(w, in.src, c, begin, end, plane);
          } else {
            const BufferSpec& guide = w.plan.buffers[in.guide];
            const float* small = gather(w, in.guide, c - in.in_channels, 0, guide.pixels(), other);
            upsample[0](small, 2 * first_row, 2 * last_row, plane);
            src = plane;
          }
          w.kernel.normalise_pool(src, static_cast<int>(end - begin) / static_cast<int>(from.width), static_cast<int>(from.width),
                                  p[kScale][c], p[kShift][c], other);
          std::memcpy(tile + i * kTile, other + skip, kTile * sizeof(float));
        }
        ConvTile c{};
        c.src = tile;
        c.src_stride = kTile;
        c.weight = p[kWeight];
        c.channels = static_cast<int>(channels);
        c.runs = runs.data();
        c.run_count = static_cast<int>(runs.size());
        c.out_channels = static_cast<int>(in.out_channels);
        c.row_block = row_block(in.out_channels);
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
