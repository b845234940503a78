// A 3x3 convolution of a map by Winograd's F(2x2, 3x3), group of patches by group.
#pragma once

#include <algorithm>

#include "worker.h"

namespace dsn::cpu {

class Winograd {
 public:
  // out_channels from `first_channel` of buffer `dst` on; `pool`: its sums are kept too.
  Winograd(Worker& w, int64_t in_channels, int64_t out_channels, int64_t dst, int64_t first_channel, bool pool)
      : size(w.plan.buffers[dst], in_channels, out_channels),
        w_(w),
        to_(w.plan.buffers[dst]),
        out_channels_(out_channels),
        blocks_(ceil_div(out_channels, kWinogradRows)),
        parts_(std::min<int64_t>(ceil_div(w.team().size(), size.groups), blocks_)),
        sums_(pool ? w.sums(dst) + first_channel : nullptr) {
    group.height = static_cast<int>(to_.height);
    group.width = static_cast<int>(to_.width);
    group.in_channels = static_cast<int>(in_channels);
    group.weight_stride = blocks_ * kWinogradRows * 4 * in_channels;
    group.dst = w.state(dst) + first_channel * kTile;
    group.dst_tile_stride = to_.channels * kTile;
    group.position_stride = size.position_stride;
  }

  // A small map has fewer groups than a team has threads; these then take some outputs each and transform the input
  // for themselves.
  int64_t items() const { return size.groups * parts_; }

  // Tiles of the input that are there when the first `item` + 1 of the items can be run.
  int64_t tiles_before(int64_t item) const {
    const int64_t end = std::min((item / parts_ + 1) * size.patches, size.all);
    const int64_t rows = std::min(ceil_div(end, patches_across()) * 2 + 1, to_.height);
    return ceil_div(rows * to_.width, kTile);
  }

  void run(int64_t item) const {
    const int64_t index = item / parts_, part = item % parts_, begin = index * size.patches;
    const int64_t end = std::min(begin + size.patches, size.all);
    const int64_t first = blocks_ * part / parts_ * kWinogradRows;
    const int64_t last = std::min(blocks_ * (part + 1) / parts_ * kWinogradRows, out_channels_);
    WinogradGroup g = group;
    g.first = static_cast<int>(begin);
    g.patches = static_cast<int>(end - begin);
    g.out_channels = static_cast<int>(last - first);
    g.weight += first * 4 * g.in_channels;
    if (g.bias) g.bias += first;
    g.dst += first * kTile;
    g.transformed = w_.patch();
    g.partial = g.transformed + size.transformed;
    if (sums_) {  // there are fewer groups than tiles: theirs come first, and the others are zero
      g.sums = sums_ + index * to_.channels + first;
      for (int64_t t = size.groups + index; t < to_.tiles(); t += size.groups)
        std::fill_n(sums_ + t * to_.channels + first, last - first, 0.f);
    }
    w_.kernel.winograd3x3(g);
    const int64_t top = begin / patches_across() * 2, bottom = std::min(end / patches_across() * 2, to_.height);
    w_.macs += (last - first) * g.in_channels * 9 * (bottom - top) * to_.width;  // of the convolution it stands for
    if (const int64_t tail = to_.tiles() * kTile - to_.pixels(); tail && end == size.all)
      w_.kernel.zero_rows(g.dst + (to_.tiles() - 1) * g.dst_tile_stride + kTile - tail, kTile,
                          static_cast<int>(last - first), static_cast<int>(tail));
  }

  const WinogradSize size;
  WinogradGroup group{};  // what all groups share; whoever convolves sets src, weight, bias and what follows the sum

 private:
  int64_t patches_across() const { return winograd_row(to_.width) / 2; }

  Worker& w_;
  const BufferSpec& to_;
  const int64_t out_channels_, blocks_, parts_;
  float* const sums_;
};

}  // namespace dsn::cpu
