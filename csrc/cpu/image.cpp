// How an image enters a buffer (load, stem) and a map leaves one (store).
#include <cstring>

#include "worker.h"

namespace dsn::cpu {

void Worker::pool(int64_t buffer, int64_t begin, int64_t end) const {
  const BufferSpec& map = plan.buffers[buffer];
  float* mean = pooled(buffer);
  std::fill(mean + begin, mean + end, 0.f);
  for (int64_t t = 0; t < map.tiles(); ++t) {
    const float* row = sums(buffer) + t * map.channels;
    for (int64_t c = begin; c < end; ++c) mean[c] += row[c];
  }
  for (int64_t c = begin; c < end; ++c) mean[c] /= static_cast<float>(map.pixels());
}

void run_load(Worker& w, const Instruction& in) {
  const BufferSpec& map = w.plan.buffers[in.dst];
  w.live[in.dst].rewrite(0, static_cast<int>(in.in_channels), in.out_mask < 0 ? nullptr : w.sample.taken + in.out_mask,
                         w.compiled.normalised[in.dst]);
  w.team().phase(
      map.tiles(),
      [&](int64_t t) {
        const int valid = w.valid(map, t);
        for (int c : w.live[in.dst].channels) {
          const float* src = w.sample.image + in.src_offset + c * map.pixels() + t * kTile;
          float* dst = w.state(in.dst) + (t * map.channels + c) * kTile;
          float total = 0;
          for (int p = 0; p < kTile; ++p) {
            dst[p] = p < valid ? src[p] : 0.f;
            total += dst[p];
          }
          w.sums(in.dst)[t * map.channels + c] = total;
        }
      },
      [&] { w.pool(in.dst, 0, in.in_channels); });
}

void run_stem(Worker& w, const Instruction& in) {
  const BufferSpec& map = w.plan.buffers[in.dst];
  const Packed p = w.packed(in);
  const Patches patches(map, in.in_channels);
  w.live[in.dst].reset(static_cast<int>(in.out_channels));
  w.team().phase(
      patches.count,
      [&](int64_t i) {
        // A patch is filled from the image and used at once; no other thread has the same.
        float* patch = patches.at(w.patches(), static_cast<int>(i), w.team().alone());
        const int64_t first = i * patches.tiles, last = std::min<int64_t>(first + patches.tiles, map.tiles());
        const int64_t start = first * kTile - patches.halo;  // the patch's pixels are [start, start + stride)
        const int64_t begin = std::max<int64_t>(start, 0), end = std::min(start + patches.stride, map.pixels());
        std::memset(patch, 0, patches.size * sizeof(float));
        for (int64_t c = 0; c < in.in_channels; ++c)
          std::memcpy(patch + c * patches.stride + (begin - start), w.sample.image + c * map.pixels() + begin,
                      (end - begin) * sizeof(float));
        for (int64_t t = first; t < last; ++t) {
          ConvTile c{};
          c.src = patch + patches.halo + (t - first) * kTile;
          c.src_stride = patches.stride;
          w.set_weights(c, p[stem::kWeight], in.in_channels, in.out_channels, 9);
          c.live = w.compiled.every_channel.data();
          c.live_count = static_cast<int>(in.in_channels);
          c.valid = w.valid(map, t);
          c.width = static_cast<int>(map.width);
          c.edge = w.compiled.edges[in.dst][t].bits;
          c.dst = w.state(in.dst) + t * map.channels * kTile;
          c.dst_stride = kTile;
          c.sums = w.sums(in.dst) + t * map.channels;
          w.conv(c, 9);
        }
      },
      [&] { w.pool(in.dst, 0, in.out_channels); });
}

// Skipped slices leave as zeros.
void run_store(Worker& w, const Instruction& in) {
  const BufferSpec& map = w.plan.buffers[in.src];
  std::vector<uint8_t> alive(map.channels, 0);
  for (int c : w.live[in.src].channels) alive[c] = 1;
  w.team().phase(in.in_channels, [&](int64_t c) {
    float* dst = w.sample.map + in.out_offset + c * map.pixels();
    if (!alive[c]) {
      std::memset(dst, 0, map.pixels() * sizeof(float));
      return;
    }
    for (int64_t t = 0; t < map.tiles(); ++t)
      std::memcpy(dst + t * kTile, w.state(in.src) + (t * map.channels + c) * kTile, w.valid(map, t) * sizeof(float));
  });
}

}  // namespace dsn::cpu
