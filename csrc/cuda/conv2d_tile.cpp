#include <algorithm>

#include "cuda/schedule.h"

namespace dsn::cuda {
namespace {

// A launch of the other kernels runs beside it: so many blocks of a multiprocessor find room for their shared memory.
constexpr int kResident = 2;
constexpr int64_t kMostDepth = 16;  // groups of a pass

// Pixels of the source that a tile's cells stand for.
int64_t cells_of(const ConvTile& t, const Instruction& in) {
  const Kernel kernel(in);
  if (in.taps == 1) return int64_t{t.rows} * t.columns;
  return ((t.rows - 1) * in.stride + kernel.rows) * ((t.columns - 1) * in.stride + kernel.columns);
}

// Where everything lies for passes of `depth` groups; false if it does not fit.
bool place_conv(ConvTile& t, const Instruction& in, int64_t groups, int64_t depth, Element element, int64_t room) {
  const int64_t size = bytes_of(element);
  const int64_t stages = depth < groups ? 2 : 1;
  t.depth = static_cast<int>(depth);
  t.cell_stride = cell_stride(depth * kGroup, element);
  const int64_t cells = round_up(cells_of(t, in) * t.cell_stride * size, 16);
  const int64_t weights = round_up(in.taps * depth * (t.block_columns * kGroup + kConvPadding) * size, 16);
  const bool lists = has_chosen(in), norm = lists && in.flags & kNormalise, pool = in.flags & kPool;
  int64_t at = kHeaderBytes;
  t.at_lists = static_cast<int>(at);
  at += lists ? round_up((groups * kGroup + t.block_columns) * 2, 16) : 0;
  t.at_norm = static_cast<int>(at);
  at += norm ? round_up(groups * kGroup * 2 * size, 16) : 0;
  t.at_bias = static_cast<int>(at);
  at += has_constants(in) ? kThreads * 4 : 0;
  t.at_sums = static_cast<int>(at);
  at += pool ? round_up(t.warps_down * t.block_columns * 4, 16) : 0;
  t.at_cells = static_cast<int>(at);
  t.at_weights = static_cast<int>(at + cells);
  t.stage_bytes = static_cast<int>(stages == 2 ? cells + weights : 0);
  at += stages * (cells + weights);
  t.shared_bytes = static_cast<int>(at);
  return at <= room;
}

// Clocks of a block, for a choice between tiles alone: what it multiplies, what it copies, and what it costs besides.
double block_clocks(const ConvTile& t, const Instruction& in, int64_t groups, Element element) {
  const double rate = element == Element::kFloat ? 16 : 1.6;  // of a multiprocessor for 16 x 16 x 8 products
  const int64_t pixels = int64_t{t.rows} * t.columns;
  const int64_t warps = ceil_div(pixels, 32) * ceil_div(t.block_columns, t.warp_tiles * 8);
  const double products = static_cast<double>(groups / 4 * in.taps * 2 * t.warp_tiles);  // of a warp
  const double copied = static_cast<double>((cells_of(t, in) + in.taps * t.block_columns) * groups) / 8;
  return std::max(products * rate * static_cast<double>(warps), products * 8) + copied + 1000;
}

}  // namespace

ConvTile choose_conv_tile(const BufferSpec& to, const Instruction& in, Element element, int64_t batch,
                          const DeviceLimits& limits) {
  const int64_t columns = columns_of(in.out_channels),
                groups = conv2d_unit::groups(in.src_offset % kGroup, in.in_channels);
  ConvTile best;
  double best_cost = 0;
  for (int warps_across = 1; warps_across <= kWarps; warps_across *= 2) {
    ConvTile t;
    t.warp_tiles = columns <= 16 ? 2 : 4;
    t.warps_down = kWarps / warps_across;
    if (warps_across > 1 && warps_across / 2 * t.warp_tiles * 8 >= columns) break;
    t.block_columns = static_cast<int>(std::min<int64_t>(warps_across * t.warp_tiles * 8, columns));
    for (int64_t across = 1; across <= to.width; ++across) {
      const int64_t tile_columns = ceil_div(to.width, across);
      if (ceil_div(to.width, tile_columns) != across) continue;
      bool fits = false;
      for (int64_t down = 1; down <= to.height; ++down) {
        const int64_t rows = ceil_div(to.height, down);
        if (ceil_div(to.height, rows) != down || rows * tile_columns > t.warps_down * 32) continue;
        t.rows = static_cast<int>(rows), t.columns = static_cast<int>(tile_columns);
        t.down = static_cast<int>(down), t.across = static_cast<int>(across);
        const int64_t room = limits.shared_bytes / kResident - 1024;
        int64_t depth = std::min(groups, kMostDepth);
        while (depth > 4 && !place_conv(t, in, groups, depth, element, room)) depth -= 4;
        if (!place_conv(t, in, groups, depth, element, limits.shared_bytes)) continue;
        fits = true;
        t.column_blocks = static_cast<int>(ceil_div(columns, t.block_columns));
        // Half a wave more than fits evenly: how many blocks there are depends on the gates.
        const double waves = static_cast<double>(batch * t.blocks()) / limits.multiprocessors + 0.5;
        const double cost = block_clocks(t, in, groups, element) * std::max(1.0, waves);
        if (best.rows == 0 || cost < best_cost) best = t, best_cost = cost;
      }
      if (fits) break;  // narrower tiles only where whole rows do not fit
    }
  }
  best.resident = std::clamp(limits.shared_bytes / std::max(best.shared_bytes + 1024, 1), 1, kResident);
  return best;
}

}  // namespace dsn::cuda
