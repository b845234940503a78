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
  const int64_t patches_across = winograd_row(to.width) / 2;

  auto convolve = [&](int64_t i) {
    const int64_t group = i / parts, part = i % parts, begin = group * size.patches;
    const int64_t end = std::min(begin + size.patches, size.all);
    const int64_t first = blocks * part / parts * kWinogradRows;
    const int64_t last = std::min(blocks * (part + 1) / parts * kWinogradRows, in.out_channels);
    WinogradGroup g{};
    g.src = w.state(in.src) + in.src_offset * kTile;
    g.src_tile_stride = from.channels * kTile;
    g.height = static_cast<int>(to.height);
    g.width = static_cast<int>(to.width);
    g.first = static_cast<int>(begin);
    g.patches = static_cast<int>(end - begin);
    g.in_channels = static_cast<int>(in.in_channels);
    g.out_channels = static_cast<int>(last - first);
    g.weight = p[kWinogradWeight] + first * 4 * in.in_channels;
    g.weight_stride = blocks * kWinogradRows * 4 * in.in_channels;
    g.bias = p[kBias] + first;
    g.accumulate = in.flags & kAccumulate;
    g.relu = in.activation == Activation::kRelu;
    g.dst = w.state(in.dst) + (in.out_offset + first) * kTile;
    g.dst_tile_stride = to.channels * kTile;
    g.transformed = w.patch();
    g.position_stride = size.position_stride;
    g.partial = g.transformed + size.transformed;
    if (pool) {  // there are fewer groups than tiles: theirs come first, and the others are zero
      g.sums = w.sums(in.dst) + group * to.channels + in.out_offset + first;
      for (int64_t t = size.groups + group; t < to.tiles(); t += size.groups)
        std::fill_n(w.sums(in.dst) + t * to.channels + in.out_offset + first, last - first, 0.f);
    }
    w.kernel.winograd3x3(g);
    const int64_t top = begin / patches_across * 2, bottom = std::min(end / patches_across * 2, to.height);
    w.macs += (last - first) * in.in_channels * 9 * (bottom - top) * to.width;  // of the convolution it stands for
    if (const int64_t tail = to.tiles() * kTile - to.pixels(); tail && end == size.all)
      w.kernel.zero_rows(g.dst + (to.tiles() - 1) * g.dst_tile_stride + kTile - tail, kTile,
                         static_cast<int>(last - first), static_cast<int>(tail));
  };
  w.team().phase(size.groups * parts, convolve, [&] {
    if (pool) w.pool(in.dst, in.out_offset, in.out_offset + in.out_channels);
  });
}

}  // namespace dsn::cpu
