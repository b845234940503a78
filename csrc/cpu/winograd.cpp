// A 3x3 convolution by Winograd's F(2x2, 3x3).
#include "worker.h"

namespace dsn::cpu {

void run_winograd(Worker& w, const Instruction& in) {
  using namespace conv2d;
  const BufferSpec &from = w.plan.buffers[in.src], &to = w.plan.buffers[in.dst];
  const Packed p = w.packed(in);
  const WinogradSize size(to, in.in_channels, in.out_channels);
  const bool pool = in.flags & kPool;
  const int64_t blocks = ceil_div(in.out_channels, kWinogradRows);
  // A small map has fewer groups than a team has threads; these then take some outputs each and transform the input
  // for themselves.
  const int64_t parts = std::min<int64_t>(ceil_div(w.team().size(), size.groups), blocks);
  const int64_t group_tiles = size.patches * 4 / kTile;

  auto convolve = [&](int64_t i) {
    const int64_t group = i / parts, part = i % parts, tile = group * group_tiles;
    const int64_t first = blocks * part / parts * kWinogradRows;
    const int64_t last = std::min(blocks * (part + 1) / parts * kWinogradRows, in.out_channels);
    WinogradGroup g{};
    g.src = w.state(in.src) + in.src_offset * kTile;
    g.src_tile_stride = from.channels * kTile;
    g.height = static_cast<int>(to.height);
    g.width = static_cast<int>(to.width);
    g.first = static_cast<int>(group * size.patches);
    g.patches = static_cast<int>(size.patches);
    g.in_channels = static_cast<int>(in.in_channels);
    g.out_channels = static_cast<int>(last - first);
    g.weight = p[kWinogradWeight] + first * 4 * in.in_channels;
    g.weight_stride = blocks * kWinogradRows * 4 * in.in_channels;
    g.bias = p[kBias] + first;
    g.accumulate = in.flags & kAccumulate;
    g.relu = in.flags & kRelu;
    g.dst = w.state(in.dst) + (in.out_offset + first) * kTile;
    g.dst_tile_stride = to.channels * kTile;
    g.transformed = w.patch();
    g.position_stride = size.position_stride;
    g.partial = g.transformed + size.transformed;
    if (pool) {  // the group's sums stand for those of its tiles
      g.sums = w.sums(in.dst) + tile * to.channels + in.out_offset + first;
      for (int64_t t = 1; t < group_tiles; ++t) std::fill_n(g.sums + t * to.channels, last - first, 0.f);
    }
    w.kernel.winograd3x3(g);
    w.macs += (last - first) * in.in_channels * 9 * group_tiles * kTile;  // of the convolution it stands for
  };
  w.team().phase(size.groups * parts, convolve, [&] {
    if (pool) w.pool(in.dst, in.out_offset, in.out_offset + in.out_channels);
  });
}

}  // namespace dsn::cpu
