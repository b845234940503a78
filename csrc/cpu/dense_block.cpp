// dense_block: gated pre-activation layers, plain or bottleneck, concat or add merge, computed in place
// on one buffer. A skipped layer costs its gate; a skipped slice costs its consumers nothing.
#include <cstring>

#include "winograd.h"
#include "worker.h"

namespace dsn::cpu {
namespace {

using namespace dense_layer;

class DenseBlock {
 public:
  DenseBlock(Worker& w, const Instruction& in)
      : w(w),
        in(in),
        map(w.plan.buffers[in.dst]),
        state(w.state(in.dst)),
        live(w.live[in.dst]),
        patches(map, in.bottleneck ? in.bottleneck : map.channels),
        add(in.merge == Merge::kAdd),
        pair(in.flags & kBfloat16),
        by_winograd(in.flags & kWinograd) {
    const float* weights = w.weights + in.weights;
    for (const Layout& layout : w.compiled.layouts[&in - w.plan.code.data()]) {
      packed.push_back({weights, layout});
      weights += layout.size;
    }
    live.reset(static_cast<int>(in.in_channels));
    live.slices = add ? 0 : static_cast<int>(in.layers);
    if (pair) append_pairs(0, in.in_channels, 0);
  }

  void begin() {
    w.team().phase(0, [](int64_t) {}, [&] { decide(0); });
  }

  // After the layers before it.
  void run(int64_t l) {
    if (!w.sample.taken[in.first_gate + l]) {
      if (!add) live.skipped.push_back(static_cast<int>(l));
      return;
    }
    layer(l);
    if (add) return;
    live.append(static_cast<int>(channels(l)), static_cast<int>(in.out_channels));
    if (pair) append_pairs(channels(l), in.out_channels, pairs(in.in_channels) + l * pairs(in.out_channels));
  }

 private:
  int64_t channels(int64_t l) const { return channels_of(packed[l]); }

  // bfloat16: a slice of `count` channels from `begin` on; its first pair is number `first` of the weights.
  void append_pairs(int64_t begin, int64_t count, int64_t first) {
    for (int64_t c = 0; c < count; c += 2) {
      live_pairs.push_back(static_cast<int>(first + c / 2));
      for (int64_t row : {c, std::min(c + 1, count - 1)}) pair_rows.push_back(static_cast<int>(begin + row));
    }
  }

  // The unit in which weights and products are counted: channels, or pairs of them.
  int64_t depth(int64_t channels) const { return pair ? pairs(channels) : channels; }
  const std::vector<int>& sources() const { return pair ? live_pairs : live.channels; }
  int source_count() const { return static_cast<int>(sources().size()); }
  // The depth of the state that layer l reads.
  int64_t state_depth(const Packed& p) const {
    if (!pair || add) return depth(channels_of(p));
    return pairs(in.in_channels) + (channels_of(p) - in.in_channels) / in.out_channels * pairs(in.out_channels);
  }

  // Gates from layer l on, up to the first that opens; one thread decides for the team.
  void decide(int64_t l) {
    const Sample& s = w.sample;
    for (; l < in.layers; ++l) {
      const int64_t g = in.first_gate + l;
      float z = 0;
      if (in.gate != GateKind::kNone) {
        z = w.kernel.dot(packed[l][kGate], w.pooled(in.dst), static_cast<int>(channels(l))) + *packed[l][kGateBias];
        w.macs += channels(l);
      }
      w.decide(g, in.gate, z);
      if (s.taken[g]) return;
      if (!add) std::memset(w.pooled(in.dst) + channels(l), 0, in.out_channels * sizeof(float));
    }
  }

  void layer(int64_t l) {
    const Span span(w, in, l);
    const Packed& p = packed[l];
    if (w.team().late_for(2)) return;
    float* base = w.patches();
    constants(p);
    auto finish = [&, l] {
      if (add)
        w.pool(in.dst, 0, in.in_channels);
      else
        w.pool(in.dst, channels(l), channels(l) + in.out_channels);
      decide(l + 1);
    };
    if (by_winograd) return run_by_winograd(p, l, base, finish);
    const bool alone = w.team().alone_for(2, [&] {  // one patch behind, so that a ring of three stays in cache
      for (int i = 0; i <= patches.count; ++i) {
        if (i < patches.count) fill(p, base, i, true);
        if (i > 0) convolve(p, l, base, i - 1, true);
      }
      finish();
    });
    if (alone) return;
    w.team().phase(patches.count, [&](int64_t i) { fill(p, base, static_cast<int>(i), false); });
    w.team().phase(patches.count, [&](int64_t i) { convolve(p, l, base, static_cast<int>(i), false); }, finish);
  }

  // The bottleneck's output is a map of its own in `inner`, of which Winograd's patches are read.
  template <class Finish>
  void run_by_winograd(const Packed& p, int64_t l, float* inner, const Finish& finish) {
    Winograd all(w, in.bottleneck, in.out_channels, in.dst, channels(l), true);
    all.group.src = inner;
    all.group.src_tile_stride = in.bottleneck * kTile;
    all.group.weight = p[kWinogradConv];
    auto fill_tile = [&](int64_t t) { reduce(p, t, inner + t * in.bottleneck * kTile, kTile); };
    const bool alone = w.team().alone_for(2, [&] {  // what a group reads comes right before it
      for (int64_t i = 0, filled = 0; i < all.items(); ++i) {
        for (const int64_t needed = all.tiles_before(i); filled < needed; ++filled) fill_tile(filled);
        all.run(i);
      }
      finish();
    });
    if (alone) return;
    w.team().phase(map.tiles(), fill_tile);
    w.team().phase(all.items(), [&](int64_t i) { all.run(i); }, finish);
  }

  // Sums what the skipped slices give: into the bottleneck's bias, or into nine sums, one for each tap of a plain 3x3.
  void constants(const Packed& p) {
    const int64_t rows = in.bottleneck ? padded_rows(in.bottleneck) : 9 * padded_rows(in.out_channels);
    bias.assign(rows, 0.f);
    if (in.bottleneck) std::memcpy(bias.data(), p[kReduceBias], rows * sizeof(float));
    for (int slice : live.skipped)
      for (int64_t i = 0; i < rows; ++i) bias[i] += p[kConstants][slice * rows + i];
    if (!in.bottleneck && !live.skipped.empty()) sum_taps();
  }

  // The 3x3's input in patch i: the bottleneck's output, or the normalised state.
  void fill(const Packed& p, float* base, int i, bool ring) {
    const int64_t rows = in.bottleneck ? depth(in.bottleneck) : source_count();
    const int64_t first = int64_t{i} * patches.tiles, last = std::min<int64_t>(first + patches.tiles, map.tiles());
    float* patch = patches.at(base, i, ring);
    for (int64_t t = first; t < last; ++t) {
      const float* src = state + t * map.channels * kTile;
      float* dst = patch + patches.halo + (t - first) * kTile;
      if (!in.bottleneck && pair) {
        w.bfloat16->normalise(src, pair_rows.data(), source_count(), p[kScale], p[kShift], dst, patches.stride);
        continue;
      }
      if (!in.bottleneck) {
        w.kernel.normalise(src, live.channels.data(), live.count(), p[kScale], p[kShift], dst, patches.stride);
        continue;
      }
      reduce(p, t, dst, patches.stride);
    }
    share_halo(base, i, ring, rows, first);
  }

  // The bottleneck's output in tile t.
  void reduce(const Packed& p, int64_t t, float* dst, int64_t dst_stride) {
    ConvTile c{};
    c.state = state + t * map.channels * kTile;
    c.scale = p[kScale];
    c.shift = p[kShift];
    c.src = w.scratch();
    c.src_stride = kTile;
    w.set_weights(c, p[kReduce], state_depth(p), in.bottleneck, 1);
    c.live = sources().data();
    c.live_count = source_count();
    c.pairs = c.dst_pairs = pair;
    c.state_rows = pair_rows.data();
    c.valid = w.valid(map, t);
    c.bias = bias.data();
    c.relu = true;
    c.dst = dst;
    c.dst_stride = dst_stride;
    w.conv(c, 1, live.count());
  }

  // Copies a patch's ends into its neighbours' halos and writes the zeros above and below the map.
  void share_halo(float* base, int i, bool ring, int64_t depth, int64_t first_tile) {
    const int64_t stride = patches.stride, end = patches.halo + int64_t{patches.tiles} * kTile;
    const int64_t used =
        patches.halo + std::min<int64_t>(map.pixels() - first_tile * kTile, int64_t{patches.tiles} * kTile);
    const int halo = patches.halo, rows = static_cast<int>(depth);
    float* patch = patches.at(base, i, ring);
    const bool top = i == 0, bottom = i + 1 == patches.count;
    if (top) w.kernel.zero_rows(patch, stride, rows, halo);
    if (bottom) w.kernel.zero_rows(patch + used, stride, rows, static_cast<int>(stride - used));
    if (!top) w.kernel.copy_rows(patch + halo, stride, patches.at(base, i - 1, ring) + end, stride, rows, halo);
    if (!bottom) w.kernel.copy_rows(patch + end - halo, stride, patches.at(base, i + 1, ring), stride, rows, halo);
  }

  void convolve(const Packed& p, int64_t l, float* base, int i, bool ring) {
    const int64_t first = int64_t{i} * patches.tiles, last = std::min<int64_t>(first + patches.tiles, map.tiles());
    float* patch = patches.at(base, i, ring);
    for (int64_t t = first; t < last; ++t) {
      ConvTile c{};
      c.src = patch + patches.halo + (t - first) * kTile;
      c.src_stride = patches.stride;
      w.set_weights(c, p[kConv], in.bottleneck ? depth(in.bottleneck) : state_depth(p),
                    add ? in.bottleneck : in.out_channels, 9);
      c.live = in.bottleneck ? w.compiled.every_channel.data() : sources().data();
      c.live_count = in.bottleneck ? static_cast<int>(depth(in.bottleneck)) : source_count();
      c.pairs = pair;
      const int64_t channels_read = in.bottleneck ? in.bottleneck : live.count();
      c.valid = w.valid(map, t);
      c.width = static_cast<int>(map.width);
      c.edge = w.compiled.edges[in.dst][t].bits;
      c.dst_stride = kTile;
      float* sums = w.sums(in.dst) + t * map.channels;
      if (add) {
        c.bias = p[kConvBias];
        c.relu = true;
        c.dst = w.scratch();
        c.dst_pairs = pair;
        w.conv(c, 9, channels_read);
        expand(p, t, c.dst, sums);
        continue;
      }
      c.dst = state + (t * map.channels + channels(l)) * kTile;
      c.sums = sums + channels(l);
      if (!in.bottleneck && !live.skipped.empty()) {
        start_from_constants(c.dst, t, c.valid);
        c.accumulate = true;
      }
      w.conv(c, 9, channels_read);
    }
  }

  // The add merge's last 1x1, summed into the state.
  void expand(const Packed& p, int64_t t, float* src, float* sums) {
    ConvTile c{};
    c.src = src;
    c.src_stride = kTile;
    w.set_weights(c, p[kExpand], depth(in.bottleneck), in.in_channels, 1);
    c.live = w.compiled.every_channel.data();
    c.live_count = static_cast<int>(depth(in.bottleneck));
    c.pairs = pair;
    c.valid = w.valid(map, t);
    c.accumulate = true;
    c.dst = state + t * map.channels * kTile;
    c.dst_stride = kTile;
    c.sums = sums;
    w.conv(c, 1, in.bottleneck);
  }

  // A constant slice under zero padding: each pixel gets the taps that lie inside the map.
  void start_from_constants(float* dst, int64_t t, int valid) {
    const int64_t rows = padded_rows(in.out_channels);
    int64_t y = t * kTile / map.width, x = t * kTile % map.width;
    // Most pixels of a tile are of one kind; the others are set one by one.
    const int common = border_kind(y, std::min<int64_t>(1, map.width - 1));
    for (int64_t m = 0; m < in.out_channels; ++m)
      std::fill_n(dst + m * kTile, kTile, borders[static_cast<size_t>(common * rows + m)]);
    for (int p = 0; p < valid; ++p) {
      const int kind = border_kind(y, x);
      if (kind != common)
        for (int64_t m = 0; m < in.out_channels; ++m)
          dst[m * kTile + p] = borders[static_cast<size_t>(kind * rows + m)];
      if (++x == map.width) x = 0, ++y;
    }
  }

  // Bits that say which of a pixel's neighbours above, below, left and right lie outside of the map.
  int border_kind(int64_t y, int64_t x) const {
    return (y == 0) | (y == map.height - 1) << 1 | (x == 0) << 2 | (x == map.width - 1) << 3;
  }

  // borders[kind] = the sum of the taps that lie inside for that kind of pixel.
  void sum_taps() {
    const int64_t rows = padded_rows(in.out_channels);
    borders.assign(16 * rows, 0.f);
    for (int kind = 0; kind < 16; ++kind)
      for (int tap = 0; tap < 9; ++tap) {
        const int dy = tap / 3, dx = tap % 3;
        if ((dy == 0 && kind & 1) || (dy == 2 && kind & 2) || (dx == 0 && kind & 4) || (dx == 2 && kind & 8)) continue;
        for (int64_t m = 0; m < rows; ++m) borders[kind * rows + m] += bias[tap * rows + m];
      }
  }

  static int64_t channels_of(const Packed& p) { return p.layout.fields[kGate].shape.numel(); }

  Worker& w;
  const Instruction& in;
  const BufferSpec& map;
  float* state;
  Live& live;
  Patches patches;
  bool add;
  bool pair;  // bfloat16
  bool by_winograd;
  std::vector<int> live_pairs, pair_rows;  // then those that hold data, and the two channels of each
  std::vector<Packed> packed;
  std::vector<float> bias, borders;
};

}  // namespace

void run_dense_block(Worker& w, const Instruction& in) { run_dense_block(&w, 1, in); }

void run_dense_block(Worker* samples, int count, const Instruction& in) {
  std::vector<DenseBlock> blocks;
  for (int i = 0; i < count; ++i) blocks.emplace_back(samples[i], in);
  for (DenseBlock& block : blocks) block.begin();
  for (int64_t l = 0; l < in.layers; ++l)
    for (DenseBlock& block : blocks) block.run(l);
}

}  // namespace dsn::cpu
