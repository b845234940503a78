// pointwise, upsample: what is done to each value by itself.
#include "worker.h"

namespace dsn::cpu {
namespace {

using namespace listed;

// 1 for each channel that is read and holds data.
std::vector<uint8_t> holds_data(const Worker& w, const Instruction& in) {
  std::vector<uint8_t> holds(in.in_channels, 0);
  for (int c : w.live[in.src].channels)
    if (c >= in.src_offset && c < in.src_offset + in.in_channels) holds[c - in.src_offset] = 1;
  return holds;
}

}  // namespace

void run_pointwise(Worker& w, const Instruction& in) {
  const std::vector<uint8_t> holds = holds_data(w, in);
  const BufferSpec &from = w.plan.buffers[in.src], &to = w.plan.buffers[in.dst];
  if (!(in.flags & kAccumulate) && in.src != in.dst)
    w.live[in.dst].rewrite(static_cast<int>(in.out_offset), static_cast<int>(in.in_channels), nullptr, false);
  if (w.shut(in)) return;
  Blend common{};
  if (in.flags & kAffine) {
    const Packed p = w.packed(in);
    common.scale = p[kWeight];
    common.shift = p[kBias];
  }
  common.factor = in.factor < 0 ? nullptr : w.pooled(in.factor);
  common.holds = holds.data();
  common.accumulate = in.flags & kAccumulate;
  common.activation = in.activation;
  common.channels = static_cast<int>(in.in_channels);
  w.team().phase(to.tiles(), [&](int64_t t) {
    Blend tile = common;
    tile.src = w.state(in.src) + (t * from.channels + in.src_offset) * kTile;
    tile.dst = w.state(in.dst) + (t * to.channels + in.out_offset) * kTile;
    tile.count = w.valid(to, t);
    w.kernel.blend(tile);
  });
}

void run_upsample(Worker& w, const Instruction& in) {
  const std::vector<uint8_t> holds = holds_data(w, in);
  const BufferSpec &from = w.plan.buffers[in.src], &to = w.plan.buffers[in.dst];
  const bool adds = in.flags & kAccumulate;
  if (!adds) w.live[in.dst].rewrite(static_cast<int>(in.out_offset), static_cast<int>(in.in_channels), nullptr, false);
  if (w.shut(in)) return;
  w.team().phase(to.tiles(), [&](int64_t t) {
    const int valid = w.valid(to, t);
    int64_t place[kTile];  // in the source, of each pixel
    for (int q = 0; q < valid; ++q) {
      const int64_t pixel = t * kTile + q;
      const int64_t near = pixel / to.width / in.stride * from.width + pixel % to.width / in.stride;
      place[q] = near / kTile * from.channels * kTile + near % kTile;
    }
    for (int64_t c = 0; c < in.in_channels; ++c) {
      const float* src = w.state(in.src) + (in.src_offset + c) * kTile;
      float* dst = w.state(in.dst) + (t * to.channels + in.out_offset + c) * kTile;
      for (int q = 0; q < valid; ++q) dst[q] = (adds ? dst[q] : 0.f) + (holds[c] ? src[place[q]] : 0.f);
      w.kernel.activate(dst, 1, valid, in.activation, nullptr);
    }
  });
}

}  // namespace dsn::cpu
