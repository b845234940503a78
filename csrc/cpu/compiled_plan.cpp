#include "compiled_plan.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <numeric>

#include "../common/streams.h"
#include "kernels.h"

namespace dsn::cpu {
namespace {

constexpr int64_t kLargest = int64_t{1} << 24;
constexpr int64_t kLargestWindow = 1024;

std::vector<Layout> layouts_of(const Plan& plan, const Instruction& in, int64_t slices) {
  switch (in.op) {
    case Op::kStem:
      return {stem::layout(in.in_channels, in.out_channels)};
    case Op::kDenseBlock: {
      std::vector<Layout> layers;
      for (int64_t l = 0; l < in.layers; ++l) {
        const int64_t channels = in.in_channels + (in.merge == Merge::kAdd ? 0 : l * in.out_channels);
        layers.push_back(
            dense_layer::layout(channels, in.out_channels, in.bottleneck, l, in.merge, in.flags & kBfloat16));
      }
      return layers;
    }
    case Op::kTransition: {
      const int64_t guide = in.guide >= 0 ? plan.buffers[in.guide].channels : 0;
      return {transition::layout(in.in_channels + guide, in.out_channels, slices)};
    }
    case Op::kHead:
      return {head::layout(in.in_channels, in.out_channels, slices)};
    case Op::kConv2d:
      return {conv2d::layout(in.in_channels, in.out_channels, in.taps, in.flags & kNormalise, in.out_mask >= 0,
                             in.flags & kWinograd, slices, in.flags & kBfloat16)};
    case Op::kPathHead:
      return {path_head::layout(in.in_channels, in.out_channels, in.layers)};
    case Op::kGate:
      return {gate::layout(in.in_channels, in.gate == GateKind::kRecurrent)};
    case Op::kLinear:
      return {linear::layout(in.in_channels, in.out_channels)};
    default:
      return {};
  }
}

}  // namespace

CompiledPlan::CompiledPlan(const char* op, const int64_t* words, int64_t count, const BufferSpec& image,
                           int64_t weight_count)
    : words_(words, words + count), image_(image), weight_count_(weight_count) {
  dsn::check(count > 0 && words[0] > 0 && words[0] < 64, op, ": plan must start with its number of buffers");
  const int64_t first = 1 + words[0] * kBufferFields;
  dsn::check(count > first && (count - first) % kInstructionFields == 0, op, ": plan of ", count,
             " words does not hold whole instructions");
  for (const int64_t* b = words + 1; b < words + first; b += kBufferFields) plan.buffers.push_back({b[0], b[1], b[2]});
  for (const int64_t* f = words + first; f < words + count; f += kInstructionFields) {
    const int64_t* word = f;
    each_field(plan.code.emplace_back(),
               [&](auto& field) { field = static_cast<std::remove_reference_t<decltype(field)>>(*word++); });
  }
  check(op);
  find_streams(op);
  int64_t most = 0;
  normalised.resize(plan.buffers.size());
  for (const Instruction& in : plan.code) {
    most = std::max({most, in.in_channels * (in.columns ? in.taps : 1), in.bottleneck});
    first_step.push_back(steps);
    steps += 1 + (in.op == Op::kDenseBlock ? in.layers : 0);
    if (in.op == Op::kConv2d && in.out_mask >= 0) chosen_bytes += 4 * in.in_channels * in.taps * in.out_channels;
    int64_t maps = 0;
    for (int64_t b : {in.src, in.dst})
      if (b >= 0) maps += 4 * plan.buffers[b].channels * plan.buffers[b].pixels();
    map_bytes.insert(map_bytes.end(), in.op == Op::kDenseBlock ? in.layers : 1, maps);
    const bool normalises = in.op == Op::kTransition || in.op == Op::kHead || in.flags & kNormalise;
    for (int64_t b : {in.src, in.guide})
      if (normalises && b >= 0) normalised[b] = true;
  }
  every_channel.resize(most);
  std::iota(every_channel.begin(), every_channel.end(), 0);
  for (const BufferSpec& b : plan.buffers) {
    edges.emplace_back();
    for (int64_t t = 0; t < b.tiles(); ++t) edges.back().emplace_back(t * kTile, b.width);
  }
}

std::shared_ptr<const CompiledPlan> CompiledPlan::get(const char* op, const int64_t* words, int64_t count,
                                                      const BufferSpec& image, int64_t weight_count) {
  constexpr size_t kKept = 64;
  static std::mutex mutex;
  static auto* cache = new std::vector<std::shared_ptr<const CompiledPlan>>;  // most recent last; outlives every thread
  auto same = [&](const std::shared_ptr<const CompiledPlan>& p) {
    return p->weight_count_ == weight_count && p->image_ == image &&
           std::equal(p->words_.begin(), p->words_.end(), words, words + count);
  };
  {
    std::lock_guard lock(mutex);
    auto found = std::find_if(cache->rbegin(), cache->rend(), same);
    if (found != cache->rend()) {
      std::rotate(found.base() - 1, found.base(), cache->end());
      return cache->back();
    }
  }
  std::shared_ptr<const CompiledPlan> plan(new CompiledPlan(op, words, count, image, weight_count));
  std::lock_guard lock(mutex);
  if (cache->size() == kKept) cache->erase(cache->begin());
  cache->push_back(plan);
  return plan;
}

void CompiledPlan::find_streams(const char* op) {
  stream_of = streams_of(plan);
  for (int i = 0; i < static_cast<int>(plan.code.size()); ++i) {
    const Instruction& in = plan.code[i];
    const size_t stream = stream_of[in.dst >= 0 ? in.dst : in.src];
    if (streams.size() <= stream) streams.resize(stream + 1);
    streams[stream].push_back(i);
  }
  for (int i = 0; i < static_cast<int>(plan.code.size()); ++i)
    if (plan.code[i].guide >= 0)
      dsn::check(streams[stream_of[plan.code[i].guide]].back() < i, op, ": instruction ", i,
                 " of the plan takes a guide that is not finished");
}

void CompiledPlan::check(const char* op) {
  for (const BufferSpec& b : plan.buffers)
    dsn::check(b.channels > 0 && b.height > 0 && b.width > 0 && b.channels < kLargest && b.pixels() < kLargest, op,
               ": plan has a buffer of ", b.channels, " x ", b.height, " x ", b.width);
  struct Contents {  // of a buffer while the plan runs
    int64_t channels = 0, slices = 0;
  };
  std::vector<Contents> contents(plan.buffers.size());
  auto buffer = [&](int64_t b) -> const BufferSpec& {
    dsn::check(b >= 0 && b < static_cast<int64_t>(plan.buffers.size()), op, ": plan names buffer ", b, " of ",
               plan.buffers.size());
    return plan.buffers[b];
  };
  auto fits = [&](bool ok, size_t i) {
    dsn::check(ok, op, ": instruction ", i, " of the plan does not fit its buffers");
  };
  // Whether dst has room for so many channels; those before out_offset are there already.
  auto writes = [&](const Instruction& in, int64_t channels, bool adds) {
    const int64_t end = in.out_offset + channels;
    return end <= plan.buffers[in.dst].channels && (adds ? end : in.out_offset) <= contents[in.dst].channels;
  };
  // Whether each window holds a pixel of the map.
  auto covers = [](int64_t from, int64_t to, int64_t window, int64_t pad, int64_t stride) {
    return window > pad && (to - 1) * stride - pad < from;
  };
  auto written = [&](const Instruction& in, int64_t channels, bool skippable) {
    const int64_t before = in.out_offset ? contents[in.dst].slices : 0;
    contents[in.dst] = {in.out_offset + channels, before + (skippable ? channels : 0)};
  };
  auto same_map = [](const BufferSpec& a, const BufferSpec& b) { return a.height == b.height && a.width == b.width; };
  for (size_t i = 0; i < plan.code.size(); ++i) {
    const Instruction& in = plan.code[i];
    dsn::check(in.in_channels > 0 && in.out_channels >= 0 && in.layers >= 0 && in.bottleneck >= 0 &&
                   in.in_channels < kLargest && in.out_channels < kLargest && in.layers < kLargest &&
                   in.bottleneck < kLargest && in.weights >= 0 && in.first_gate >= 0 && in.out_offset >= 0 &&
                   in.guide >= -1 && in.only_if >= -1 && in.out_mask >= -1 && in.in_mask >= -1 && in.shared >= 0 &&
                   in.src_offset >= 0 && in.relu_channels >= 0 && in.first_gate < kLargest &&
                   in.out_offset < kLargest && in.src_offset < kLargest && in.only_if < kLargest &&
                   in.out_mask < kLargest && in.in_mask < kLargest && in.taps >= 0 && in.taps < kLargest &&
                   in.stride >= 0 && in.stride < kLargest && in.columns >= 0 && in.columns <= in.taps &&
                   std::abs(in.pad_rows) < kLargest && std::abs(in.pad_columns) < kLargest,
               op, ": instruction ", i, " of the plan has a size out of range");
    const bool fills = in.op == Op::kLoad || in.op == Op::kStem || in.op == Op::kDenseBlock;
    const bool maps = in.op == Op::kTransition || in.op == Op::kConv2d || in.op == Op::kSubsample ||
                      in.op == Op::kMaxPool || in.op == Op::kAvgPool || in.op == Op::kAdd;
    fits((in.src >= 0) == !fills && (in.dst >= 0) == (fills || maps) && (in.guide < 0 || in.op == Op::kTransition), i);
    dsn::check(!(in.flags & kBfloat16) || bfloat16_kernels(), op, ": bfloat16 on the CPU needs AVX-512");
    int64_t slices = 0;
    switch (in.op) {
      case Op::kLoad:
      case Op::kStem: {
        const BufferSpec& dst = buffer(in.dst);
        const int64_t out = in.op == Op::kLoad ? in.in_channels : in.out_channels;
        fits(same_map(dst, image_) && in.in_channels == image_.channels && out > 0 && out <= dst.channels, i);
        const bool masked = in.op == Op::kLoad && in.out_mask >= 0;
        contents[in.dst] = {out, masked ? out : 0};
        plan.gates = std::max(plan.gates, masked ? in.out_mask + out : 0);
        needs_masks |= masked;
        break;
      }
      case Op::kDenseBlock: {
        const BufferSpec& dst = buffer(in.dst);
        const bool add = in.merge == Merge::kAdd;
        // An add block overwrites its input; a concat block leaves it for another block to start from.
        fits(contents[in.dst].channels >= in.in_channels && in.out_channels > 0 && (!add || in.bottleneck > 0) &&
                 in.in_channels + (add ? 0 : in.layers * in.out_channels) <= dst.channels,
             i);
        contents[in.dst] = {in.in_channels + (add ? 0 : in.layers * in.out_channels), add ? 0 : in.layers};
        plan.gates = std::max(plan.gates, in.first_gate + in.layers);
        break;
      }
      case Op::kTransition: {
        const BufferSpec &src = buffer(in.src), &dst = buffer(in.dst);
        fits(in.src != in.dst && contents[in.src].channels == in.in_channels && in.out_channels > 0 &&
                 in.out_channels <= dst.channels && dst.height == src.height / 2 && dst.width == src.width / 2,
             i);
        slices = contents[in.src].slices;
        if (in.guide >= 0) {
          const BufferSpec& guide = buffer(in.guide);
          fits(contents[in.guide].channels == guide.channels && in.guide != in.dst && in.guide != in.src &&
                   guide.pixels() <= src.pixels(),
               i);
          slices += contents[in.guide].slices;
        }
        contents[in.dst] = {in.out_channels, 0};
        break;
      }
      case Op::kHead:
        buffer(in.src);
        fits(contents[in.src].channels == in.in_channels && in.out_channels > 0, i);
        slices = contents[in.src].slices;
        plan.logits = std::max(plan.logits, in.out_offset + in.out_channels);
        break;
      case Op::kStore: {
        const BufferSpec& src = buffer(in.src);
        fits(contents[in.src].channels == in.in_channels && map.channels == 0, i);
        map = {in.in_channels, src.height, src.width};
        break;
      }
      case Op::kPoolSums:
        buffer(in.src);
        fits(contents[in.src].channels == in.in_channels, i);
        break;
      case Op::kConv2d: {
        const BufferSpec &src = buffer(in.src), &dst = buffer(in.dst);
        const bool adds = in.flags & kAccumulate, live = in.flags & kLive;
        const bool keeps_size = (in.taps == 1 || in.taps == 9) && (in.stride == 1 || in.stride == 2) &&
                                dst.height == ceil_div(src.height, in.stride) &&
                                dst.width == ceil_div(src.width, in.stride);
        fits(in.src != in.dst && (in.columns ? in.stride > 0 && in.taps % in.columns == 0 : keeps_size) &&
                 contents[in.src].channels >= in.src_offset + in.in_channels && in.out_channels > 0 &&
                 in.in_channels * std::max<int64_t>(in.taps, 1) < kLargest && writes(in, in.out_channels, adds) &&
                 (!live || (contents[in.src].channels == in.in_channels && in.src_offset == 0)),
             i);
        fits(!(in.flags & kWinograd) ||
                 (in.taps == 9 && in.stride == 1 && !in.columns && !(in.flags & (kNormalise | kLive | kBfloat16)) &&
                  in.out_mask < 0 && in.relu_channels == 0 &&
                  winograd_pays(in.in_channels, in.out_channels, dst.height, dst.width)),
             i);
        if (live && in.flags & kNormalise) {
          slices = contents[in.src].slices;
          fits(in.taps == 1 || slices == 0, i);
        }
        if (!adds) written(in, in.out_channels, in.out_mask >= 0);
        plan.gates = std::max({plan.gates, in.only_if + 1, in.out_mask < 0 ? 0 : in.out_mask + in.out_channels,
                               in.in_mask < 0 ? 0 : in.in_mask + in.in_channels});
        needs_masks |= in.out_mask >= 0;
        break;
      }
      case Op::kSubsample: {
        const BufferSpec &src = buffer(in.src), &dst = buffer(in.dst);
        fits(in.src != in.dst && (in.stride == 1 || in.stride == 2) && contents[in.src].channels == in.in_channels &&
                 in.out_offset + in.in_channels <= in.out_channels && in.out_channels <= dst.channels &&
                 dst.height == ceil_div(src.height, in.stride) && dst.width == ceil_div(src.width, in.stride),
             i);
        contents[in.dst] = {in.out_channels, 0};
        break;
      }
      case Op::kMaxPool:
      case Op::kAvgPool: {
        const BufferSpec &src = buffer(in.src), &dst = buffer(in.dst);
        fits(in.src != in.dst && contents[in.src].channels == in.in_channels && in.stride > 0 && in.columns > 0 &&
                 in.taps % in.columns == 0 && in.taps < kLargestWindow && writes(in, in.in_channels, false) &&
                 covers(src.height, dst.height, in.taps / in.columns, in.pad_rows, in.stride) &&
                 covers(src.width, dst.width, in.columns, in.pad_columns, in.stride),
             i);
        written(in, in.in_channels, in.out_mask >= 0 || contents[in.src].slices > 0);
        plan.gates = std::max(plan.gates, in.out_mask < 0 ? 0 : in.out_mask + in.in_channels);
        needs_masks |= in.out_mask >= 0;
        break;
      }
      case Op::kAdd:
        fits(in.src != in.dst && same_map(buffer(in.src), buffer(in.dst)) &&
                 in.src_offset + in.in_channels <= contents[in.src].channels &&
                 in.out_offset + in.in_channels <= contents[in.dst].channels,
             i);
        break;
      case Op::kGate:
        fits(in.in_channels <= buffer(in.src).channels &&
                 (in.gate != GateKind::kRecurrent || in.shared + recurrence::layout().size <= weight_count_),
             i);
        plan.gates = std::max(plan.gates, in.first_gate + 1);
        break;
      case Op::kLinear:
        fits(in.in_channels <= buffer(in.src).channels && in.out_channels > 0, i);
        plan.logits = std::max(plan.logits, in.out_offset + in.out_channels);
        break;
      case Op::kTanh:
        fits(in.in_channels <= buffer(in.src).channels, i);
        break;
      case Op::kPathHead:
        buffer(in.src);
        fits(contents[in.src].channels == in.in_channels && in.out_channels > 0, i);
        plan.logits = std::max(plan.logits, in.out_offset + in.out_channels);
        plan.gates = std::max(plan.gates, in.first_gate + in.layers);
        break;
      default:
        dsn::check(false, op, ": instruction ", i, " of the plan is of unknown kind ", static_cast<int64_t>(in.op));
    }
    layouts.push_back(layouts_of(plan, in, slices));
    int64_t end = in.weights;
    for (const Layout& l : layouts.back()) end += l.size;
    dsn::check(end <= weight_count_, op, ": weights hold ", weight_count_, " floats, instruction ", i,
               " of the plan needs ", end, "; pack them anew");
  }
}

}  // namespace dsn::cpu
