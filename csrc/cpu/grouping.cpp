#include "grouping.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>

#include "kernels.h"

namespace dsn::cpu {
namespace {

constexpr int kLargest = 16;                    // samples side by side
constexpr int64_t kMemory = int64_t{64} << 20;  // bytes that they may take

int64_t second_cache() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  const long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return 4 * kSecondCacheFloats;
}

// The shortest of a few runs, in seconds per byte.
template <class Work>
double seconds_per_byte(int64_t bytes, const Work& work) {
  double best = 1;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best / static_cast<double>(bytes);
}

// Packing every second filter of every second input of a 3x3, its weights in cache or far from it.
double pack_seconds(const std::vector<float>& far, int64_t repeats, bool near) {
  constexpr int kChannels = 64, kTaps = 9;
  constexpr int64_t kSize = kChannels * kTaps * kChannels;
  std::vector<int> live;
  std::vector<uint8_t> keep(kChannels);
  for (int c = 0; c < kChannels; c += 2) live.push_back(c), keep[c + 1] = 1;
  constexpr int64_t kStride = kChannels / 2 + kAlign;
  std::vector<float> packed(kSize / 2 / kChannels * kStride + kAlign);
  const auto count = static_cast<int>(live.size());
  return seconds_per_byte(repeats * kSize / 2 * 4, [&] {
    for (int64_t i = 0; i < repeats; ++i)
      kernels().select(far.data() + (near ? 0 : i * kSize), kChannels, live.data(), count, kTaps, keep.data(),
                       kChannels, packed.data(), kStride);
  });
}

// A 1x1 convolution over maps in cache or far from it.
double read_seconds(std::vector<float>& far, int64_t tiles, int64_t tiles_near) {
  constexpr int kIn = 64, kOut = 12;
  std::vector<float> weights(kIn * kOut), out(kOut * kTile);
  std::vector<int> live(kIn);
  std::iota(live.begin(), live.end(), 0);
  ConvTile tile{};
  tile.src_stride = kTile;
  tile.weight = weights.data();
  tile.tap_stride = tile.row_block = tile.out_channels = kOut;
  tile.live = live.data();
  tile.live_count = kIn;
  tile.valid = kTile;
  tile.dst = out.data();
  tile.dst_stride = kTile;
  return seconds_per_byte(tiles * kIn * kTile * 4, [&] {
    for (int64_t t = 0; t < tiles; ++t) {
      tile.src = far.data() + t % tiles_near * kIn * kTile;
      kernels().pointwise(tile);
    }
  });
}

}  // namespace

Costs measure_costs() {
  const int64_t bytes = std::clamp<int64_t>(8 * second_cache(), int64_t{8} << 20, int64_t{64} << 20);
  std::vector<float> far(static_cast<size_t>(bytes / 4), 1.f);
  const int64_t convolutions = bytes / 4 / (64 * 9 * 64), tiles = bytes / 4 / (64 * kTile);
  const double pack = pack_seconds(far, convolutions, true);
  const double read = read_seconds(far, tiles, std::max<int64_t>(1, second_cache() / 4 / (64 * kTile * 4)));
  return {.fetch = std::max(0.0, pack_seconds(far, convolutions, false) - pack),
          .pack = pack,
          .reload = std::max(0.0, read_seconds(far, tiles, tiles) - read)};
}

ByPattern::ByPattern(const uint8_t* gates, int64_t samples, int64_t count) : order(static_cast<size_t>(samples)) {
  std::iota(order.begin(), order.end(), 0);
  auto compare = [&](int64_t a, int64_t b) {
    return std::memcmp(gates + a * count, gates + b * count, static_cast<size_t>(count));
  };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return compare(a, b) < 0; });
  for (size_t i = 0; i < order.size(); ++i) patterns += i == 0 || compare(order[i - 1], order[i]) != 0;
}

int group_size(const CompiledPlan& compiled, int64_t sample_bytes, double alike) {
  const Costs& cost = compiled.plan.costs;
  if (!compiled.plan.needs_masks && sample_bytes <= second_cache()) return 1;
  int best = 1;
  double least = 0;
  for (int group = 1; group <= kLargest && (group == 1 || group * sample_bytes <= kMemory); group *= 2) {
    const double packings = 1 / std::min<double>(alike, group);
    double seconds = static_cast<double>(compiled.weight_bytes()) * cost.fetch / group +
                     static_cast<double>(compiled.chosen_bytes) * cost.pack * packings;
    // A step finds what the one before has left, unless that was pushed out by the other samples.
    for (int64_t bytes : compiled.map_bytes)
      if (group > 1 && group * bytes > second_cache()) seconds += static_cast<double>(bytes) * cost.reload;
    if (group == 1 || seconds < least) best = group, least = seconds;
  }
  return best;
}

}  // namespace dsn::cpu
