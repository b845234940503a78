#include <algorithm>
#include <cmath>

#include "cuda/schedule.h"

namespace dsn::cuda {
namespace {

// A launch of the other kernels runs beside it: so many blocks of a multiprocessor find room for their shared memory.
constexpr int kResident = 2;
constexpr int64_t kMostDepth = 16;  // groups of a pass

int64_t pixels_of(const ConvTile& t) { return int64_t{t.pack} * t.rows * t.columns; }

// Pixels of the source that a tile's cells stand for.
int64_t cells_of(const ConvTile& t, const Instruction& in) {
  const Kernel kernel(in);
  if (in.taps == 1) return pixels_of(t);
  return t.pack * ((t.rows - 1) * in.stride + (kernel.rows - 1) * in.dilation + 1) *
         ((t.columns - 1) * in.stride + (kernel.columns - 1) * in.dilation + 1);
}

// Where everything lies for passes of `depth` groups in so many slots, of `groups` that a block multiplies; false if
// it does not fit. `channels`: of the destination, padded.
bool place_conv(ConvTile& t, const Instruction& in, int64_t channels, int64_t groups, int64_t depth, int slots,
                Element element, int64_t room) {
  const int64_t size = bytes_of(element), all = input_groups(in);
  t.depth = static_cast<int>(depth);
  t.slots = depth < groups ? slots : 1;
  t.cell_stride = cell_stride(depth * kGroup, element);
  const int64_t cells = round_up(cells_of(t, in) * t.cell_stride * size, 16);
  const int64_t weights = round_up(in.taps * depth * (t.block_columns * kGroup + kConvPadding) * size, 16);
  const bool lists = has_chosen(in), norm = lists && in.flags & kNormalise, pool = in.flags & kPool;
  int64_t at = kHeaderBytes;
  t.at_lists = static_cast<int>(at);
  at += lists ? round_up((all * kGroup + t.block_columns) * 2, 16) : 0;
  t.at_norm = static_cast<int>(at);
  at += norm ? round_up(all * kGroup * 2 * size, 16) : 0;
  t.at_bias = static_cast<int>(at);
  at += has_constants(in) ? kThreads * 4 : t.block_columns * 4;
  t.at_sums = static_cast<int>(at);
  at += pool ? round_up(t.warps_down * t.block_columns * 4, 16) : 0;
  t.at_old = static_cast<int>(at);
  const bool whole = outputs_of(in) % 8 == 0 && in.out_offset % 8 == 0 && channels % 8 == 0;  // pieces of 16 bytes
  const bool old = in.flags & kAccumulate && !lists && size == 2 && t.split == 1 && whole;
  t.old_stride = old ? t.block_columns + 8 : 0;
  at += round_up(pixels_of(t) * t.old_stride * size, 16);
  t.at_cells = static_cast<int>(at);
  t.at_weights = static_cast<int>(at + cells);
  t.slot_bytes = static_cast<int>(cells + weights);
  const int64_t sums = t.split > 1 ? int64_t{kThreads} * 2 * t.warp_tiles * 4 * 4 : 0;  // of the cluster's blocks
  at += std::max(t.slots * (cells + weights), sums);
  t.shared_bytes = static_cast<int>(at);
  return at <= room;
}

// Clocks of a launch of `items` tiles, for a choice between tiles alone.
double launch_clocks(const ConvTile& t, const Instruction& in, int64_t groups, Element element, double items,
                     int multiprocessors) {
  const double product = product_clocks(element == Element::kFloat);
  const double size = static_cast<double>(bytes_of(element)), fragment = 32 * kGroup * size;
  const int64_t pixels = pixels_of(t);
  const auto warps = static_cast<double>(ceil_div(pixels, 32) * ceil_div(t.block_columns, t.warp_tiles * 8));
  const auto steps = static_cast<double>(groups / 4 * in.taps);
  const double sums = t.split > 1 ? kThreads * 8 * t.warp_tiles * 4 : 0;
  const double old = static_cast<double>(pixels * t.old_stride) * size;
  const double copied =
      static_cast<double>((cells_of(t, in) + in.taps * t.block_columns) * groups * kGroup) * size + sums + old;
  const double step = 2 * t.warp_tiles * product * 4;  // of a warp that has a scheduler's tensor core for itself
  const double fullest = std::ceil(warps / 4);         // of the schedulers
  const double rate = std::min(1.0, fullest * step / (kStepClocks + step));
  const double multiplied = fullest * steps * step;
  const double loaded = (warps * steps * (4 + t.warp_tiles) * fragment + copied) / kSharedRate;
  const auto passes = static_cast<double>(ceil_div(groups, t.depth)), ahead = std::max(1.0, t.slots - 1.0);
  const double waits = std::max(0.0, passes - ahead) / ahead * kTripClocks;
  const double trips =
      1 + (t.split > 1 ? 2 + t.split / 4.0 : 0) + (in.flags & kAccumulate && !old ? t.warp_tiles / 2 : 0);
  const double alone = trips * kTripClocks + std::max({multiplied / rate, loaded, copied / kL2RateAlone, waits});
  const double busy = std::max({multiplied, loaded, copied / kL2Rate});
  const double blocks = items * t.split, room = static_cast<double>(multiprocessors) * t.resident / t.split * t.split;
  return std::max(alone * std::ceil(blocks / room), busy * std::ceil(blocks / multiprocessors));
}

}  // namespace

ConvTile choose_conv_tile(const BufferSpec& to, const Instruction& in, Element element, int64_t batch,
                          const Machine& machine) {
  const int64_t columns = columns_of(outputs_of(in)), groups = input_groups(in);
  const int64_t channels = groups_of(to.channels) * kGroup;
  const int size = static_cast<int>(bytes_of(element));
  const bool plain = !has_chosen(in) && !(in.flags & kPool);
  const int most = size == 2 && !has_chosen(in) ? kMostWarpTiles<2> : kMostWarpTiles<4>;
  ConvTile best;
  double best_cost = 0;
  auto consider = [&](ConvTile t) {
    const int64_t own = round_up(ceil_div(groups, t.split), 4);  // of a block
    const int resident = std::min(kResident, conv_residency(size, t.warp_tiles));
    const int64_t room = machine.shared_bytes / resident - kReservedBytes;
    bool fits = false;
    for (int slots = 2; slots <= 3; ++slots) {
      int64_t depth = std::min(own, kMostDepth);
      while (depth > 4 && !place_conv(t, in, channels, own, depth, slots, element, room)) depth -= 4;
      if (!place_conv(t, in, channels, own, depth, slots, element, machine.shared_bytes)) continue;
      fits = true;
      t.column_blocks = static_cast<int>(ceil_div(columns, t.block_columns));
      t.resident = std::clamp(machine.shared_bytes / (t.shared_bytes + kReservedBytes), 1, resident);
      double cost = 0;  // gates leave some of the samples, how many is not known yet
      for (const double share : {1.0, 0.8, 0.6}) {
        const double samples = static_cast<double>(batch) * (in.only_if >= 0 ? share : 1);
        const double items = std::ceil(samples / t.pack) * t.blocks() * static_cast<double>(in.groups);
        cost += launch_clocks(t, in, own, element, items, machine.multiprocessors);
      }
      if (best.rows == 0 || cost < best_cost) best = t, best_cost = cost;
    }
    return fits;
  };
  for (int warp_tiles = columns <= 16 ? 2 : 4; warp_tiles <= most; warp_tiles *= 2) {
    if (warp_tiles > 4 && warp_tiles * 4 >= columns) break;
    for (int warps_across = 1; warps_across <= kWarps; warps_across *= 2) {
      ConvTile t;
      t.warp_tiles = warp_tiles;
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
          const int most_split = plain && warp_tiles >= kLeastSplitTiles ? std::min(machine.cluster, kWarps) : 1;
          const int64_t room = t.warps_down * 32 / (rows * tile_columns);
          const int64_t most_packed = plain && t.tiles() == 1 ? std::min({room, batch, int64_t{kMostPacked}}) : 1;
          for (t.pack = 1; t.pack <= most_packed; ++t.pack)
            for (t.split = 1; t.split <= most_split && t.split * 4 <= groups; t.split *= 2) fits |= consider(t);
        }
        if (fits) break;  // narrower tiles only where whole rows do not fit
      }
    }
  }
  return best;
}

}  // namespace dsn::cuda
