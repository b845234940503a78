// conv2d: a convolution of a buffer into another, with what stands around it: BN-ReLU before, bias, sum with the
// destination and ReLU after; filters chosen by a mask, and no input channel read that another mask left dead.
#include <numeric>
#include <optional>
#include <utility>

#include "flat.h"
#include "planes.h"

namespace dsn::cpu {
namespace {

using namespace conv2d;

class Conv2d {
 public:
  Conv2d(Worker& w, const Instruction& in)
      : w(w),
        in(in),
        from(w.plan.buffers[in.src]),
        to(w.plan.buffers[in.dst]),
        p(w.packed(in)),
        planes(in.taps == 9 && in.stride == 2 && !in.columns ? 4 : 1),
        inputs(in.in_channels / in.groups),
        outputs(in.out_channels / in.groups),
        patches(Patches::of(in, to, w.team().size())),
        shares(Patches::has_heavy_weights(in) ? w.team().size() : 1),
        pair(in.flags & kBfloat16),
        clamps(in.activation == Activation::kRelu || in.activation == Activation::kRelu6) {
    const Live& held = w.live[in.src];
    some = in.flags & kLive && held.count() < in.in_channels;
    sources = some ? held.channels.data() : w.compiled.every_channel.data();
    source_count = live_count = some ? held.count() : static_cast<int>(inputs);
    if (pair)
      pair_up();
    else if (in.columns && some)
      for (int s = 0; s < source_count; ++s)
        for (int k = 0; k < in.taps; ++k) unfolded.push_back(sources[s] * static_cast<int>(in.taps) + k);
    if (in.out_mask >= 0)
      choose(held);
    else
      add_constants(held);
    set_tile();
  }

  void run() {
    if (in.out_mask >= 0 && w.selection.filters.empty() && off.empty()) return;
    const bool pool = in.flags & kPool;
    w.team().phase(
        patches.count * in.groups * shares,
        [&](int64_t i) {
          group = i / shares % in.groups;
          convolve(i / shares / in.groups, i % shares);
        },
        [&] {
          if (pool) w.pool(in.dst, in.out_offset, in.out_offset + in.out_channels);
        });
  }

 private:
  // A share of the filters in a patch.
  void convolve(int64_t i, int64_t share) {
    const int64_t first = i * patches.tiles, last = std::min<int64_t>(first + patches.tiles, to.tiles());
    if (in.out_mask >= 0) select();
    if (windows) {
      windows_row = first * kTile / to.width;
      windows->fill(w.kernel, source(), {sources, static_cast<size_t>(source_count)}, windows_row,
                    std::min(ceil_div(last * kTile, to.width), to.height), scale(), shift());
    }
    const bool patchwise = in.taps == 9 && !in.columns;
    const bool reads_state = in.taps == 1 && !in.columns && in.stride == 1 && !(in.flags & kNormalise) && !pair;
    if (patchwise) {
      fill(first * kTile - patches.halo);
      if (pair) pack_pairs(w.patch());
    }
    c.tiles = patchwise || reads_state ? static_cast<int>(last - first) : 1;
    for (int64_t t = first; t < last; t += c.tiles) {
      c.valid = w.valid(to, t + c.tiles - 1);
      c.edge = w.compiled.edges[in.dst][t].bits;
      const int64_t row = t * to.channels + in.out_offset + group * outputs;
      c.dst = w.state(in.dst) + row * kTile;
      if (in.flags & kPool) c.sums = w.sums(in.dst) + row;
      if (in.columns)
        unfold(t);
      else if (patchwise)
        c.src = w.patch() + patches.halo;
      else
        gather(t);
      if (pair && !patchwise) pack_pairs(c.src);
      if (in.groups > 1) begin_group();
      const ConvTile mine = shares > 1 ? share_of(c, share) : c;
      if (mine.out_channels <= 0) continue;
      w.conv(mine, patchwise ? 9 : 1, int64_t{live_count} * rows_of_source());
      if (in.activation != Activation::kIdentity && !clamps) activate(mine);
    }
    if (!off.empty())
      for (int64_t t = first; t < last; ++t) finish_off_filters(t);
  }

  void begin_group() {
    c.weight = p[kWeight] + group * ceil_div(outputs, c.row_block) * c.block_stride;
    c.bias = p[kBias] + group * padded_rows(outputs);
    activate_first(c, in.activated - group * outputs);
  }

  // Of a tile whose filters do not all get the ReLU.
  void activate_first(ConvTile& tile, int64_t filters) const {
    if (!in.activated) return;
    tile.relu = clamps && filters > 0;
    tile.relu_channels = static_cast<int>(std::max<int64_t>(filters, 0));
  }

  // Any activation but those that the products' kernel does: while the tiles are in the cache.
  void activate(const ConvTile& mine) {
    const int64_t before = group * outputs + (mine.dst - c.dst) / kTile;
    const int64_t rows = in.activated ? std::min<int64_t>(in.activated - before, mine.out_channels) : mine.out_channels;
    for (int t = 0; t < mine.tiles; ++t) {
      const int count = t + 1 < mine.tiles ? static_cast<int>(kTile) : mine.valid;
      float* sums = mine.sums ? mine.sums + t * mine.sums_tile : nullptr;
      for (int64_t m = 0; m < rows; m += mine.rows ? 1 : rows) {
        const int64_t row = mine.rows ? mine.rows[m] : m;
        w.kernel.activate(mine.dst + t * mine.dst_tile + row * kTile, static_cast<int>(mine.rows ? 1 : rows), count,
                          in.activation, sums ? sums + row : nullptr);
      }
    }
  }

  // Whole blocks of filters.
  ConvTile share_of(ConvTile c, int64_t share) const {
    const int64_t blocks = ceil_div(outputs, c.row_block);
    const int64_t begin = blocks * share / shares, end = blocks * (share + 1) / shares, row = begin * c.row_block;
    c.weight += begin * c.block_stride;
    c.out_channels = static_cast<int>(std::min(end * c.row_block, outputs) - row);
    c.bias += row;
    c.dst += row * c.dst_stride;
    if (c.sums) c.sums += row;
    activate_first(c, in.activated - group * outputs - row);
    return c;
  }

  // The filters that the mask chose, unless the sample before chose the same.
  void choose(const Live& held) {
    const uint8_t* mask = w.sample.taken + in.out_mask;
    const int count = static_cast<int>(in.out_channels);
    Selection& s = w.selection;
    if (!s.holds(&in, mask, count, sources, source_count)) {
      chosen(mask, count, 1, s.filters);
      add_constants(held);
      s.bias.assign(round_up(static_cast<int64_t>(s.filters.size()), kTile), 0.f);
      for (size_t m = 0; m < s.filters.size(); ++m) s.bias[m] = all_biases[s.filters[m]];
    }
    // A filter that is off adds nothing. What it leaves in dst changes only by the ReLU, and counts in the pooled
    // vector; if it does not add but store, its readers know by the same mask that it is not there.
    if ((in.flags & kAccumulate && in.activation != Activation::kIdentity) || in.flags & kPool)
      chosen(mask, count, 0, off);
  }

  // Lists where the mask is `value`. No branch on a mask, which would be wrong half of the time.
  static void chosen(const uint8_t* mask, int count, uint8_t value, std::vector<int>& list) {
    list.resize(count + 1);
    int n = 0;
    for (int i = 0; i < count; ++i) {
      list[n] = i;
      n += mask[i] == value;
    }
    list.resize(n);
  }

  // The chosen filters' weights for the live inputs, one after another.
  void select() {
    if (std::exchange(w.selection.packed, true)) return;
    w.kernel.select(p[kWeight], round_up(in.out_channels, kTile), sources, source_count, static_cast<int>(in.taps),
                    w.sample.taken + in.out_mask, static_cast<int>(in.out_channels), w.selected_weights(),
                    stride_of_selected());
    if (pair) w.bfloat16->pack(w.selected_weights(), in.taps * stride_of_selected(), source_count / 2);
  }

  // bfloat16: what is read in pairs of channels, as the weights are or, where they are chosen anew, as they come.
  // Another channel stands in for one without data, and is then set to zero.
  void pair_up() {
    std::vector<int> list;
    for (int i = 0; i < source_count;) {
      const int c = sources[i], first = in.out_mask < 0 ? c & ~1 : c;
      const int second = in.out_mask < 0 ? first + 1 : i + 1 < source_count ? sources[i + 1] : -1;
      for (int channel : {first, second}) {
        const bool holds = i < source_count && sources[i] == channel;
        if (!holds) zeroed.push_back(static_cast<int>(list.size()));
        list.push_back(holds ? channel : c);
        i += holds;
      }
      if (some && in.out_mask < 0)
        for (int k = 0; k < rows_of_source(); ++k) unfolded.push_back(first / 2 * rows_of_source() + k);
    }
    paired = std::move(list);
    sources = paired.data();
    source_count = static_cast<int>(paired.size());
  }

  // Rows of the input that a source becomes, and where one of them lies: those of a pair next to each other.
  int rows_of_source() const { return in.columns ? static_cast<int>(in.taps) : 1; }
  int row_of(int s, int k) const {
    return pair ? (s / 2 * rows_of_source() + k) * 2 + s % 2 : s * rows_of_source() + k;
  }
  void pack_pairs(float* rows) {
    for (int s : zeroed)
      for (int k = 0; k < rows_of_source(); ++k) std::fill_n(rows + row_of(s, k) * c.src_stride, c.src_stride, 0.f);
    w.bfloat16->pack(rows, c.src_stride, source_count * rows_of_source() / 2);
  }
  int64_t stride_of_selected() const { return round_up(c.out_channels, kAlign) + kAlign; }

  // Sets the fields that all tiles have in common.
  void set_tile() {
    c.pairs = pair;
    c.live_count = source_count * rows_of_source() / (pair ? 2 : 1);
    if (in.out_mask < 0) {
      w.set_weights(c, p[kWeight], pair ? pairs(in.in_channels) : inputs, outputs, in.taps);
      c.live = !some ? w.compiled.every_channel.data() : unfolded.empty() ? sources : unfolded.data();
      c.bias = all_biases;
    } else {
      const Selection& s = w.selection;
      c.out_channels = static_cast<int>(s.filters.size());
      c.row_block = row_block(c.out_channels, true);
      c.weight = w.selected_weights();
      c.live = w.compiled.every_channel.data();
      c.tap_stride = stride_of_selected();
      c.block_stride = c.row_block;
      c.bias = s.bias.data();
      c.rows = s.filters.data();
    }
    c.width = static_cast<int>(to.width);
    c.accumulate = in.flags & kAccumulate;
    c.relu6 = in.activation == Activation::kRelu6;
    c.relu = clamps;
    c.relu_channels = static_cast<int>(in.activated);
    c.dst_stride = kTile;
    c.dst_tile = to.channels * kTile;
    c.sums_tile = to.channels;
    c.cached = Patches::has_heavy_weights(in);
    if (in.columns || in.taps == 1) {
      c.src = w.scratch();
      c.src_stride = in.columns ? kUnfoldedRow : kTile;
      c.src_tile = from.channels * kTile;
      if (in.columns)
        windows.emplace(in, from, to, ceil_div(patches.tiles * kTile - 1, to.width) + 1, source_count);
      else if (in.stride == 2)
        offset.resize(kTile);
    } else {
      c.src_stride = patches.stride * planes;
      c.src_tile = kTile;
      c.plane_stride = planes == 4 ? patches.stride : 0;
    }
  }

  // A 1x1's input: the state itself, normalised or picked on the way to scratch where that is asked for.
  void gather(int64_t t) {
    float* state = source() + t * from.channels * kTile;
    if (in.stride == 2) {
      std::fill(offset.begin(), offset.end(), -1);
      for (int64_t q = 0, y = t * kTile / to.width, x = t * kTile % to.width; q < c.valid; ++q) {
        offset[q] = offset_of(2 * y, 2 * x);
        if (++x == to.width) x = 0, ++y;
      }
      for (int s = 0; s < source_count; ++s) pick(sources[s], c.src + s * kTile);
    } else if (pair) {
      w.kernel.gather(source(), from.channels * kTile, sources, source_count, static_cast<int>(t * kTile),
                      static_cast<int>((t + 1) * kTile), scale(), shift(), c.src, kTile);
    } else if (in.flags & kNormalise && !some) {
      c.state = state;
      c.scale = scale();
      c.shift = shift();
    } else if (in.flags & kNormalise) {
      w.kernel.normalise(state, sources, c.live_count, scale(), shift(), c.src, kTile);
    } else {
      c.src = state;
      if (some) c.src_rows = sources;
    }
  }

  // Any other kernel: each of its taps at each source is a row of its own, and the product is that of a 1x1.
  void unfold(int64_t t) {
    const int64_t first = t * kTile / to.width;  // row of the output
    PixelRange ranges[kTile];
    Spread s{};
    for (int64_t q = 0, y = first, x = t * kTile % to.width; q < c.valid;
         q += ranges[s.range_count++].count, x = 0, ++y)
      ranges[s.range_count] = {static_cast<int>(y * windows->width + x), static_cast<int>(q),
                               static_cast<int>(std::min(to.width - x, c.valid - q))};
    const int halves = pair ? 2 : 1;
    s.src_stride = halves * windows->size;
    s.channels = w.compiled.every_channel.data();
    s.count = source_count / halves;
    s.ranges = ranges;
    s.stride = 1;
    s.dst_stride = halves * in.taps * c.src_stride;
    for (int row = 0; row < in.taps * halves; ++row) {
      s.src = windows->at(row % halves, windows_row) + windows->taps[row / halves];
      s.dst = c.src + row * c.src_stride;
      w.kernel.spread(s);
    }
  }

  // Adds to the bias what channels without data become by a BN-ReLU, times their weights.
  void add_constants(const Live& held) {
    if (!(in.flags & kLive && in.flags & kNormalise) || held.skipped.empty()) return;
    const int64_t rows = padded_rows(in.out_channels);
    with_constants.assign(p[kBias], p[kBias] + rows);
    for (int slice : held.skipped)
      for (int64_t m = 0; m < rows; ++m) with_constants[m] += p[kConstants][slice * rows + m];
    all_biases = with_constants.data();
  }

  // A 3x3's input around the patch that starts at pixel `start` of the output: zeros outside the map. With stride 2,
  // four planes of even and odd rows and columns, so that a tap is again a contiguous load.
  void fill(int64_t start) {
    fill_flat(w.kernel, source(), from, {sources, static_cast<size_t>(source_count)}, in.stride, start, patches.stride,
              scale(), shift(), w.patch(), flat);
  }

  // How far a pixel of the source lies from the channel's first; -1 outside of the map.
  int offset_of(int64_t y, int64_t x) const {
    if (y >= from.height || x >= from.width) return -1;
    const int64_t pixel = y * from.width + x;
    return static_cast<int>(pixel / kTile * from.channels * kTile + pixel % kTile);
  }

  void pick(int channel, float* dst) {
    const bool normalise = in.flags & kNormalise;
    w.kernel.pick(source() + channel * kTile, offset.data(), static_cast<int>(offset.size()),
                  normalise ? scale() + channel : nullptr, normalise ? shift() + channel : nullptr, dst);
  }

  void finish_off_filters(int64_t t) {
    for (int m : off) {
      float* dst = w.state(in.dst) + (t * to.channels + in.out_offset + m) * kTile;
      if (!(in.flags & kAccumulate)) std::fill_n(dst, kTile, 0.f);
      w.kernel.activate(dst, 1, w.valid(to, t), in.activation, nullptr);
      if (in.flags & kPool)
        w.sums(in.dst)[t * to.channels + in.out_offset + m] = std::accumulate(dst, dst + kTile, 0.f);
    }
  }

  float* source() const { return w.state(in.src) + (in.src_offset + group * inputs) * kTile; }
  const float* scale() const { return in.flags & kNormalise ? p[kScale] + group * inputs : nullptr; }
  const float* shift() const { return p[kShift] + group * inputs; }

  Worker& w;
  const Instruction& in;
  const BufferSpec &from, &to;
  const Packed p;
  const int planes;
  const int64_t inputs, outputs;  // of a group
  const Patches patches;
  const int64_t shares;  // that the filters are split into, one for a thread
  const bool pair;       // bfloat16
  const bool clamps;     // the activation is one that the products' kernel does
  bool some;             // not all input channels are read
  const int* sources;    // those that are
  int source_count, live_count;
  std::vector<int> paired, zeroed;     // sources where they are read in pairs, and those of them without data
  std::vector<int> unfolded;           // where not all are read: taps of a kernel that is unfolded, or pairs
  const float* all_biases = p[kBias];  // of all filters
  std::vector<float> with_constants;   // these, where channels without data add to them
  std::vector<int> off;                // filters that the mask did not choose, if they need a look
  int64_t group = 0;                   // that is worked on
  std::vector<int> offset;             // in the source, of the pixels that are picked
  Pieces flat;
  std::optional<Planes> windows;  // of a kernel that is unfolded
  int64_t windows_row = 0;        // of the output, the first that they were filled for
  ConvTile c{};                   // what is common to all tiles, then of each
};

}  // namespace

void run_conv2d(Worker& w, const Instruction& in) {
  if (!(in.flags & kAccumulate))
    w.live[in.dst].rewrite(static_cast<int>(in.out_offset), static_cast<int>(in.out_channels),
                           in.out_mask < 0 ? nullptr : w.sample.taken + in.out_mask, w.compiled.normalised[in.dst]);
  if (w.shut(in)) return;
  if (in.flags & kWinograd) return run_winograd(w, in);
  Conv2d(w, in).run();
}

}  // namespace dsn::cpu
