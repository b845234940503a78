// conv2d: a convolution of a buffer into another, with what stands around it: BN-ReLU before, bias, sum with the
// destination and ReLU after; filters chosen by a mask, and no input channel read that another mask left dead.
#include <numeric>

#include "worker.h"

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
        patches(to, in.in_channels * planes, w.team().size()) {
    const uint8_t* taken = w.sample.taken;
    const Live& held = w.live[in.src];
    some = in.flags & kLive && held.count() < in.in_channels;
    sources = some ? held.channels.data() : w.compiled.every_channel.data();
    source_count = some ? held.count() : static_cast<int>(in.in_channels);
    if (in.out_mask >= 0) filters = chosen(taken + in.out_mask, static_cast<int>(in.out_channels), 1);
    add_constants(held);
    if (in.columns && some)
      for (int s = 0; s < source_count; ++s)
        for (int k = 0; k < in.taps; ++k) unfolded.push_back(sources[s] * static_cast<int>(in.taps) + k);
    // A filter that is off adds nothing. What it leaves in dst changes only by the ReLU, and counts in the pooled
    // vector; if it does not add but store, its readers know by the same mask that it is not there.
    if (in.out_mask >= 0 && ((in.flags & kAccumulate && in.flags & kRelu) || in.flags & kPool))
      off = chosen(taken + in.out_mask, static_cast<int>(in.out_channels), 0);
  }

  void run() {
    if (in.out_mask >= 0 && filters.empty() && off.empty()) return;
    const bool pool = in.flags & kPool;
    w.team().phase(
        patches.count, [&](int64_t i) { convolve(i); },
        [&] {
          if (pool) w.pool(in.dst, in.out_offset, in.out_offset + in.out_channels);
        });
  }

 private:
  void convolve(int64_t i) {
    const int64_t first = i * patches.tiles, last = std::min<int64_t>(first + patches.tiles, to.tiles());
    select();
    const bool patchwise = in.taps == 9 && !in.columns;
    if (patchwise) fill(first * kTile - patches.halo);
    for (int64_t t = first; t < last; ++t) {
      ConvTile c = tile(t);
      if (in.columns) {
        unfold(t, c);
      } else if (patchwise) {
        c.src = w.patch() + patches.halo + (t - first) * kTile;
        c.src_stride = patches.stride * planes;
        c.plane_stride = planes == 4 ? patches.stride : 0;
      } else {
        gather(t, c);
      }
      if (c.out_channels > 0) w.conv(c, patchwise ? 9 : 1);
      if (!off.empty()) finish_off_filters(t);
    }
  }

  // Where the mask is `value`; without a branch, which would be wrong half of the time.
  static std::vector<int> chosen(const uint8_t* mask, int count, uint8_t value) {
    std::vector<int> list(count + 1);
    int n = 0;
    for (int i = 0; i < count; ++i) {
      list[n] = i;
      n += mask[i] == value;
    }
    list.resize(n);
    return list;
  }

  // The chosen filters' weights for the live inputs, one after another.
  void select() {
    if (in.out_mask < 0 || selected) return;
    selected = w.selected_weights();
    w.kernel.select(p[kWeight], round_up(in.out_channels, kTile), sources, source_count, static_cast<int>(in.taps),
                    w.sample.taken + in.out_mask, static_cast<int>(in.out_channels), selected, stride_of_selected());
    bias.assign(round_up(static_cast<int64_t>(filters.size()), kTile), 0.f);
    for (size_t m = 0; m < filters.size(); ++m) bias[m] = all_biases[filters[m]];
  }
  int64_t stride_of_selected() const { return round_up(static_cast<int64_t>(filters.size()), kAlign) + kAlign; }

  ConvTile tile(int64_t t) const {
    ConvTile c{};
    c.live_count = source_count * static_cast<int>(in.columns ? in.taps : 1);
    if (in.out_mask < 0) {
      w.set_weights(c, p[kWeight], in.in_channels, in.out_channels, in.taps);
      c.live = unfolded.empty() ? sources : unfolded.data();
      c.bias = all_biases;
    } else {
      c.out_channels = static_cast<int>(filters.size());
      c.row_block = row_block(c.out_channels);
      c.weight = selected;
      c.live = w.compiled.every_channel.data();
      c.tap_stride = stride_of_selected();
      c.block_stride = c.row_block;
      c.bias = bias.data();
      c.rows = filters.data();
    }
    c.valid = w.valid(to, t);
    c.width = static_cast<int>(to.width);
    c.edge = w.compiled.edges[in.dst][t].bits;
    c.accumulate = in.flags & kAccumulate;
    c.relu = in.flags & kRelu;
    c.relu_channels = static_cast<int>(in.relu_channels);
    c.dst = w.state(in.dst) + (t * to.channels + in.out_offset) * kTile;
    c.dst_stride = kTile;
    if (in.flags & kPool) c.sums = w.sums(in.dst) + t * to.channels + in.out_offset;
    return c;
  }

  // A 1x1's input: the state itself, normalised or picked on the way to scratch where that is asked for.
  void gather(int64_t t, ConvTile& c) {
    const int64_t channels = from.channels * kTile;
    c.src_stride = kTile;
    c.src = w.scratch();
    if (in.stride == 2) {
      std::vector<int> offset(kTile, -1);
      for (int q = 0; q < c.valid; ++q) {
        const int64_t y = (t * kTile + q) / to.width, x = (t * kTile + q) % to.width;
        offset[q] = offset_of(2 * y, 2 * x);
      }
      for (int s = 0; s < source_count; ++s) pick(sources[s], offset, c.src + s * kTile);
    } else if (in.flags & kNormalise && !some) {
      c.state = source() + t * channels;
      c.scale = p[kScale];
      c.shift = p[kShift];
    } else if (in.flags & kNormalise) {
      w.kernel.normalise(source() + t * channels, sources, c.live_count, p[kScale], p[kShift], c.src, kTile);
    } else {
      c.src = source() + t * channels;
      if (some) c.src_rows = sources;
    }
  }

  // Any other kernel: each of its taps at each source is a row of its own, and the product is that of a 1x1.
  void unfold(int64_t t, ConvTile& c) {
    c.src_stride = kTile;
    c.src = w.scratch();
    std::vector<int> offset(kTile);
    for (int64_t k = 0; k < in.taps; ++k) {
      std::fill(offset.begin(), offset.end(), -1);
      for (int q = 0; q < c.valid; ++q) {
        const int64_t y = (t * kTile + q) / to.width * in.stride + k / in.columns - in.pad_rows,
                      x = (t * kTile + q) % to.width * in.stride + k % in.columns - in.pad_columns;
        if (y >= 0 && x >= 0) offset[q] = offset_of(y, x);
      }
      for (int s = 0; s < source_count; ++s) pick(sources[s], offset, c.src + (s * in.taps + k) * kTile);
    }
  }

  // What channels without data are after BN-ReLU, times their weights.
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
    float* patch = w.patch();
    const int64_t end = std::min(start + patches.stride, to.pixels()), begin = std::max<int64_t>(start, 0);
    if (planes == 1) {
      const int rows = source_count;
      w.kernel.zero_rows(patch, patches.stride, rows, static_cast<int>(begin - start));
      w.kernel.zero_rows(patch + (end - start), patches.stride, rows, static_cast<int>(start + patches.stride - end));
      w.kernel.gather(source(), from.channels * kTile, sources, rows, static_cast<int>(begin), static_cast<int>(end),
                      in.flags & kNormalise ? p[kScale] : nullptr, p[kShift], patch + (begin - start), patches.stride);
      return;
    }
    std::vector<int> offset(patches.stride);
    for (int plane = 0; plane < 4; ++plane) {
      std::fill(offset.begin(), offset.end(), -1);
      for (int64_t q = begin, y = begin / to.width, x = begin % to.width; q < end; ++q) {
        offset[q - start] = offset_of(2 * y + plane / 2, 2 * x + plane % 2);
        if (++x == to.width) x = 0, ++y;
      }
      for (int s = 0; s < source_count; ++s)
        pick(sources[s], offset, patch + (int64_t{s} * 4 + plane) * patches.stride);
    }
  }

  // Where the source's pixel lies from the channel's first; -1 outside the map.
  int offset_of(int64_t y, int64_t x) const {
    if (y >= from.height || x >= from.width) return -1;
    const int64_t pixel = y * from.width + x;
    return static_cast<int>(pixel / kTile * from.channels * kTile + pixel % kTile);
  }

  void pick(int channel, const std::vector<int>& offset, float* dst) {
    const bool normalise = in.flags & kNormalise;
    w.kernel.pick(source() + channel * kTile, offset.data(), static_cast<int>(offset.size()),
                  normalise ? p[kScale] + channel : nullptr, normalise ? p[kShift] + channel : nullptr, dst);
  }

  void finish_off_filters(int64_t t) {
    for (int m : off) {
      float* dst = w.state(in.dst) + (t * to.channels + in.out_offset + m) * kTile;
      if (!(in.flags & kAccumulate)) std::fill_n(dst, kTile, 0.f);
      if (in.flags & kRelu)
        for (int q = 0; q < kTile; ++q) dst[q] = dst[q] < 0 ? 0.f : dst[q];
      if (in.flags & kPool)
        w.sums(in.dst)[t * to.channels + in.out_offset + m] = std::accumulate(dst, dst + kTile, 0.f);
    }
  }

  float* source() const { return w.state(in.src) + in.src_offset * kTile; }

  Worker& w;
  const Instruction& in;
  const BufferSpec &from, &to;
  const Packed p;
  const int planes;
  Patches patches;
  bool some;           // not all input channels are read
  const int* sources;  // those that are
  int source_count;
  std::vector<int> unfolded;           // of a kernel that is unfolded, where not all are read: their taps
  const float* all_biases = p[kBias];  // of all filters
  std::vector<float> with_constants;   // these, where channels without data add to them
  std::vector<int> filters, off;       // with a mask: the chosen ones; the others, if they need a look
  float* selected = nullptr;           // weights of the chosen filters
  std::vector<float> bias;             // of the chosen filters
};

}  // namespace

void run_conv2d(Worker& w, const Instruction& in) {
  if (!(in.flags & kAccumulate))
    w.live[in.dst].rewrite(static_cast<int>(in.out_offset), static_cast<int>(in.out_channels),
                           in.out_mask < 0 ? nullptr : w.sample.taken + in.out_mask, w.compiled.normalised[in.dst]);
  if (in.only_if >= 0 && !w.sample.taken[in.only_if]) return;
  if (in.flags & kWinograd) return run_winograd(w, in);
  Conv2d(w, in).run();
}

}  // namespace dsn::cpu
