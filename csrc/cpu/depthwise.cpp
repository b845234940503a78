// depthwise: a convolution of each channel by a window of its own.
#include <algorithm>

#include "planes.h"

namespace dsn::cpu {

using namespace listed;

void run_depthwise(Worker& w, const Instruction& in) {
  w.live[in.dst].rewrite(static_cast<int>(in.out_offset), static_cast<int>(in.in_channels), nullptr, false);
  if (w.shut(in)) return;
  const BufferSpec &from = w.plan.buffers[in.src], &to = w.plan.buffers[in.dst];
  const Packed p = w.packed(in);
  std::vector<int> channels(in.in_channels, -1);
  for (int c : w.live[in.src].channels)
    if (const int64_t at = c - in.src_offset; at >= 0 && at < in.in_channels) channels[at] = static_cast<int>(at);
  Planes planes(in, from, to, band_rows(to), std::min(in.in_channels, kBandChannels));
  Slide s{};
  s.offset = planes.taps.data();
  s.weight_stride = round_up(in.in_channels, kAlign);
  s.taps = static_cast<int>(in.taps);
  s.activation = in.activation;
  const int64_t chunks = ceil_div(in.in_channels, kBandChannels);
  w.team().phase(ceil_div(to.height, planes.band) * chunks, [&](int64_t i) {
    const int64_t first = i / chunks * planes.band, last = std::min(first + planes.band, to.height);
    const int64_t begin = i % chunks * kBandChannels, count = std::min(kBandChannels, in.in_channels - begin);
    planes.fill(w.kernel, w.state(in.src) + in.src_offset * kTile, {channels.data() + begin, size_t(count)}, first,
                last);
    float* const dst = w.state(in.dst) + (in.out_offset + begin) * kTile;
    slide_channels(planes, s, count, first, last, [&](Slide& own, int64_t c) {
      own.weight = p[kWeight] + begin + c;
      own.bias = p[kBias][begin + c];
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
