// Which channels hold data and which filters are chosen, as lists that the kernels read, and how filters are stored.
#include <algorithm>
#include <set>

#include "cuda/schedule.h"

namespace dsn::cuda {
namespace {

using Ranges = std::vector<ChannelRange>;
constexpr int kForced = -1;  // in the place of the instruction that decides a gate

// Whether the chosen filters of convolution i may be stored side by side: every reader goes by the same mask.
bool read_by_mask(const Plan& plan, size_t i) {
  const Instruction& conv = plan.code[i];
  for (size_t j = i + 1; j < plan.code.size(); ++j) {
    const Instruction& next = plan.code[j];
    const bool alike = next.op == Op::kConv2d && next.in_mask == conv.out_mask && next.in_channels == conv.out_channels;
    if ((next.src == conv.dst || next.guide == conv.dst) && !alike) return false;
    if (next.dst == conv.dst) return !(next.flags & kAccumulate) && next.out_offset == 0;
  }
  return true;
}

// Replaces what lies behind the first `offset` channels.
void write(Ranges& ranges, int64_t offset, const Ranges& written) {
  int64_t kept = 0;
  size_t count = 0;
  for (; count < ranges.size() && kept < offset; ++count) {
    ranges[count].channels = static_cast<int32_t>(std::min<int64_t>(ranges[count].channels, offset - kept));
    kept += ranges[count].channels;
  }
  ranges.resize(count);
  if (kept < offset) ranges.push_back({static_cast<int32_t>(offset - kept)});
  ranges.insert(ranges.end(), written.begin(), written.end());
}

ChannelRange range_of(int64_t channels, int64_t gate) {
  return {static_cast<int32_t>(channels), static_cast<int32_t>(gate)};
}

bool begins_with(const Ranges& all, const Ranges& first) {
  return all.size() >= first.size() && std::equal(first.begin(), first.end(), all.begin());
}

// The list that begins with these ranges, a new one if there is none; of channels that are always live, none.
Listed find_list(std::vector<ChannelList>& lists, const Ranges& ranges) {
  const auto gated = [](const ChannelRange& range) { return range.gate >= 0; };
  if (std::none_of(ranges.begin(), ranges.end(), gated)) return {};
  for (size_t l = 0; l < lists.size(); ++l) {
    if (begins_with(ranges, lists[l].ranges)) lists[l].ranges = ranges;
    if (begins_with(lists[l].ranges, ranges)) return {static_cast<int>(l), static_cast<int>(ranges.size())};
  }
  lists.push_back({ranges});
  return {static_cast<int>(lists.size()) - 1, static_cast<int>(ranges.size())};
}

}  // namespace

void Schedule::place_lists(const char* op, const Plan& plan, int64_t batch) {
  decided_by.assign(static_cast<size_t>(plan.gates), kForced);
  for (size_t i = 0; i < plan.code.size(); ++i) {
    const Instruction& in = plan.code[i];
    const int64_t gates = in.op == Op::kDecide ? in.in_channels : in.op == Op::kGate ? 1 : 0;
    std::fill_n(decided_by.begin() + in.first_gate, gates, static_cast<int>(i));
  }
  listed_behind.resize(plan.code.size());
  convs.resize(plan.code.size());
  inputs.resize(plan.code.size());
  filters.resize(plan.code.size());
  std::vector<Ranges> live(states.size());
  std::vector<int64_t> packed_by(states.size(), -1);
  std::vector<bool> rectified(states.size(), false);  // nothing below zero
  for (size_t i = 0; i < plan.code.size(); ++i) {
    const Instruction& in = plan.code[i];
    switch (in.op) {
      case Op::kLoad:
        write(live[in.dst], 0, {range_of(in.in_channels, in.out_mask)});
        break;
      case Op::kStem:
      case Op::kTransition:
      case Op::kSubsample:
        write(live[in.dst], 0, {range_of(in.out_channels, -1)});
        break;
      case Op::kHead:
        inputs[i] = find_list(lists, live[in.src]);
        break;
      default:
        break;
    }
    if (has(in.op, kWindowed)) {  // a pool's channel holds data if its source does and its own mask is on
      Ranges found = has(in.op, kPasses) ? live[in.src] : Ranges{range_of(in.in_channels, -1)};
      int64_t gate = in.out_mask;
      for (ChannelRange& range : found) {
        if (gate < 0) break;
        (range.gate < 0 ? range.gate : range.both) = static_cast<int32_t>(gate);
        gate += range.channels;
      }
      write(live[in.dst], in.out_offset, found);
    }
    if ((in.op == Op::kPointwise || in.op == Op::kUpsample) && in.src != in.dst && !(in.flags & kAccumulate))
      write(live[in.dst], in.out_offset, {range_of(in.in_channels, -1)});
    if (in.op != Op::kConv2d) {
      const bool keeps = in.out_offset > 0 || in.only_if >= 0;  // some of what was there
      if (has(in.op, kPlain) && in.dst >= 0)
        rectified[in.dst] = has(in.op, kPasses) && rectified[in.src] && (!keeps || rectified[in.dst]);
      continue;
    }
    ConvStep& step = convs[i];
    const bool adds = in.flags & kAccumulate, relu = in.activation == Activation::kRelu && in.activated == 0;
    check(packed_by[in.src] < 0 || packed_by[in.src] == in.in_mask, op,
          ": a convolution of the plan reads by another mask than its input was written by; GPU kernels do not");
    if (packed_by[in.src] >= 0) {
      inputs[i] = find_list(lists, {range_of(in.in_channels, in.in_mask)});
    } else if (in.flags & kLive) {
      inputs[i] = find_list(lists, live[in.src]);
      step.scattered = true;
    }
    if (in.out_mask >= 0) {
      filters[i] = find_list(lists, {range_of(in.out_channels, in.out_mask)});
      step.packed = !adds && in.out_offset == 0 && read_by_mask(plan, i);
      const bool changes = in.activation != Activation::kIdentity && !(relu && rectified[in.dst]);
      step.off_look = !step.packed && (!adds || changes);
    }
    if (!adds) {
      if (in.out_offset == 0) packed_by[in.dst] = step.packed ? in.out_mask : -1;
      write(live[in.dst], in.out_offset, {range_of(in.out_channels, in.out_mask)});
    }
    const bool whole = in.out_offset == 0 && in.out_channels == plan.buffers[in.dst].channels && in.only_if < 0;
    rectified[in.dst] = relu && (whole || rectified[in.dst]);
  }
  if (lists.empty()) return;
  for (ChannelList& list : lists) {
    const auto ranges = static_cast<int64_t>(list.ranges.size());
    check(list.channels() < 65536 && ranges <= kRangesAtOnce, op,
          ": a map of the plan has more than 65,535 channels, or more than ", kRangesAtOnce,
          " convolutions wrote it by masks");
    list.at = list_stride, list.first_range = range_count;
    list_stride += round_up(list.channels(), kListPiece), range_count += ranges;
  }
  lists_at = reserve(batch * list_stride * 2);
  counts_at = reserve(batch * range_count * 4);
  find_making();
}

// A list is made anew behind each instruction that decides a gate of it, since readers before the next may read its
// first ranges.
void Schedule::find_making() {
  for (size_t l = 0; l < lists.size(); ++l) {
    std::vector<int> last;  // of each range: the instruction behind which it is known
    std::set<int> makers;
    for (const ChannelRange& range : lists[l].ranges) {
      last.push_back(kForced);
      for (const int32_t gate : {range.gate, range.both})
        for (int64_t g = gate; gate >= 0 && g < gate + range.channels; ++g) {
          makers.insert(decided_by[static_cast<size_t>(g)]);
          last.back() = std::max(last.back(), decided_by[static_cast<size_t>(g)]);
        }
    }
    for (const int maker : makers) {
      const auto later = std::find_if(last.begin(), last.end(), [&](int by) { return by > maker; });
      const Listed made{static_cast<int>(l), static_cast<int>(later - last.begin())};
      (maker == kForced ? listed_first : listed_behind[static_cast<size_t>(maker)]).push_back(made);
    }
  }
}

// Samples with equal masks behind one another let a block gather a convolution's weights once for all that it walks.
// That is worth its two launches, and the comparison of each sample with those before it, where even half of it saves
// more, and all masks are known at the start.
void Schedule::place_groups(const Plan& plan, Element element, int64_t batch, const Machine& machine) {
  double saved = 0;
  for (size_t i = 0; i < plan.code.size(); ++i) {
    const Instruction& in = plan.code[i];
    const ConvTile& t = convs[i].tile;
    if (!convs[i].walk || t.slots > 1) continue;
    const double samples = static_cast<double>(convs[i].walk) / t.tiles();  // of a block
    const double weights = static_cast<double>(in.taps * in.in_channels * t.block_columns * bytes_of(element));
    const double blocks = static_cast<double>(batch * t.blocks()) / convs[i].walk;
    saved += std::max(0.0, samples - 1) * weights * blocks / machine.l2_rate;
  }
  const bool known = std::all_of(listed_behind.begin(), listed_behind.end(), [](const Making& m) { return m.empty(); });
  grouped = known && saved / 2 > 2 * kLaunchSeconds + kCompareSeconds * static_cast<double>(batch);
  if (!grouped) return;
  order_at = reserve(batch * 8);
  alike_at = reserve(batch * 4);
}

}  // namespace dsn::cuda
