#include "plan.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "../common/check.h"

namespace dsn {
namespace {

constexpr int64_t kHeader = 6;  // words before those of the first buffer
constexpr int64_t kLargest = int64_t{1} << 24;
constexpr int64_t kLargestOffset = int64_t{1} << 48;
constexpr int64_t kLargestWindow = int64_t{1} << 20;  // of a pool: the map
constexpr int64_t kGateKinds = 0
#define DSN_GATE(id, name) +1
#include "instructions.def"
    ;
constexpr int64_t kActivations = 0
#define DSN_ACTIVATION(id, name) +1
#include "instructions.def"
    ;
constexpr int64_t kMerges = 0
#define DSN_MERGE(id, name) +1
#include "instructions.def"
    ;
constexpr int64_t kRegionKinds = 0
#define DSN_REGION(id, name, description) +1
#include "instructions.def"
    ;

// Whether no field is so large that a product of three overflows, or negative where that means nothing.
bool in_range(const Instruction& in) {
  Instruction sizes = in;
  for (int64_t* offset : {&sizes.weights, &sizes.shared})
    if (*offset >= 0 && *offset < kLargestOffset) *offset = 0;
  for (int64_t* pad : {&sizes.pad_rows, &sizes.pad_columns})
    if (*pad < 0 && *pad > -kLargest) *pad = 0;
  bool ok = in.in_channels > 0 && in.columns <= in.taps && static_cast<int64_t>(in.gate) < kGateKinds &&
            static_cast<int64_t>(in.merge) < kMerges && static_cast<int64_t>(in.activation) < kActivations;
#define DSN_FIELD(type, name, initial, description) \
  ok &= static_cast<int64_t>(sizes.name) >= initial && static_cast<int64_t>(sizes.name) < kLargest;
#include "instructions.def"
  return ok;
}

// One past the last gate that an instruction decides, 0 if it decides none.
int64_t gates_of_own(const Instruction& in) {
  const int64_t decided = in.op == Op::kGate ? 1 : in.op == Op::kDecide ? in.in_channels : in.layers;
  return has(in.op, kOwnsGates) ? in.first_gate + decided : 0;
}

// One past the last gate that an instruction decides or reads.
int64_t gates_of(const Instruction& in) {
  const int64_t chosen = in.op == Op::kConv2d ? in.out_channels : in.in_channels;
  return std::max({gates_of_own(in), in.only_if + 1, in.out_mask < 0 ? 0 : in.out_mask + chosen,
                   in.in_mask < 0 ? 0 : in.in_mask + in.in_channels});
}

bool same_map(const BufferSpec& a, const BufferSpec& b) { return a.height == b.height && a.width == b.width; }

bool halves(const BufferSpec& from, const BufferSpec& to, int64_t stride) {
  return (stride == 1 || stride == 2) && to.height == ceil_div(from.height, stride) &&
         to.width == ceil_div(from.width, stride);
}

// Whether each window along one side holds a pixel of the map.
bool covers(int64_t from, int64_t to, int64_t window, int64_t pad, int64_t stride) {
  return window > pad && (to - 1) * stride - pad < from;
}

}  // namespace

// Follows what each buffer holds while the plan runs.
struct Plan::Checker {
  struct Contents {
    int64_t channels = 0, slices = 0;
  };
  Plan& plan;
  std::vector<Contents> contents;
  std::set<int64_t> decided;  // gates that the plan decides, by which filters may be chosen

  // Whether dst has room for so many channels; those before out_offset are there already.
  bool has_room(const Instruction& in, int64_t channels, bool adds) const {
    const int64_t end = in.out_offset + channels;
    return end <= plan.buffers[in.dst].channels && (adds ? end : in.out_offset) <= contents[in.dst].channels;
  }
  void written(const Instruction& in, int64_t channels, bool skippable) {
    const int64_t before = in.out_offset ? contents[in.dst].slices : 0;
    contents[in.dst] = {in.out_offset + channels, before + (skippable ? channels : 0)};
  }

  // Whether the plan has decided all gates that choose an instruction's channels.
  bool chosen_by_plan(const Instruction& in) const {
    const int64_t count = in.op == Op::kConv2d ? in.out_channels : in.in_channels;
    for (int64_t i = 0; i < count; ++i)
      if (!decided.count(in.out_mask + i)) return false;
    return true;
  }

  // Whether a tensor begins where those before it, which are one behind another, end.
  static bool follows(int64_t offset, const BufferSpec& before) { return offset == before.values(); }

  // Whether it is scaled by a vector that is long enough.
  bool scales(const Instruction& in) const {
    return has(in.op, kTakesFactor) && in.in_channels <= plan.buffers[in.factor].channels;
  }

  // Whether an instruction stays within its buffers; takes note of what it writes and of the slices that it reads.
  bool fits(const Instruction& in, int64_t& slices) {
    const auto count = static_cast<int64_t>(plan.buffers.size());
    const bool in_place = in.op == Op::kPointwise && in.src_offset == in.out_offset && !(in.flags & kAccumulate);
    if ((in.src >= 0) != has(in.op, kReads) || (in.dst >= 0) != has(in.op, kWrites) ||
        (in.src == in.dst && !in_place) || std::max({in.src, in.dst, in.guide, in.factor}) >= count ||
        (in.guide >= 0 && !has(in.op, kTakesGuide)) || (in.factor >= 0 && !scales(in)) ||
        (in.only_if >= 0 && !has(in.op, kWaits)) || (in.out_mask >= 0 && !has(in.op, kChooses)) ||
        (in.in_mask >= 0 && in.op != Op::kConv2d) || (has(in.op, kLogits) && in.out_channels == 0))
      return false;
    const BufferSpec none{0, 0, 0};
    const BufferSpec &src = in.src >= 0 ? plan.buffers[in.src] : none, &dst = in.dst >= 0 ? plan.buffers[in.dst] : none;
    const Contents held = in.src >= 0 ? contents[in.src] : Contents{};
    const bool all = held.channels == in.in_channels, masked = in.out_mask >= 0;
    const bool within = in.src_offset + in.in_channels <= held.channels;  // what is read is there
    plan.gates = std::max(plan.gates, gates_of(in));
    for (int64_t i = 0; in.op == Op::kDecide && i < in.in_channels; ++i) decided.insert(in.first_gate + i);
    plan.needs_masks |= masked && !chosen_by_plan(in);
    if (has(in.op, kLogits)) plan.logits = std::max(plan.logits, in.out_offset + in.out_channels);
    if (has(in.op, kWindowed)) {
      const bool pool = has(in.op, kPasses);  // of which no window may be empty
      if (!within || in.stride == 0 || in.columns == 0 || in.taps % in.columns != 0 || in.taps >= kLargestWindow ||
          !has_room(in, in.in_channels, false) || (pool && in.dilation != 1) ||
          (pool && !covers(src.height, dst.height, in.taps / in.columns, in.pad_rows, in.stride)) ||
          (pool && !covers(src.width, dst.width, in.columns, in.pad_columns, in.stride)))
        return false;
      written(in, in.in_channels, has(in.op, kPasses) && (masked || held.slices > 0));
      return true;
    }
    switch (in.op) {
      case Op::kLoad:
      case Op::kStem: {
        const BufferSpec image{in.in_channels, dst.height, dst.width};
        const int64_t out = in.op == Op::kLoad ? in.in_channels : in.out_channels;
        const bool fits = in.src_offset == 0 && (plan.image.channels == 0 || image == plan.image);
        if (!fits && !follows(in.src_offset, plan.image)) return false;
        plan.image = fits ? image : BufferSpec{in.src_offset + image.values(), 1, 1};
        contents[in.dst] = {out, masked ? out : 0};
        return (fits || in.op == Op::kLoad) && out > 0 && out <= dst.channels;
      }
      case Op::kDenseBlock: {
        const bool add = in.merge == Merge::kAdd;
        const int64_t end = in.in_channels + (add ? 0 : in.layers * in.out_channels);
        // An add block overwrites its input; a concat block leaves it for another block to start from.
        const bool ok = contents[in.dst].channels >= in.in_channels && in.out_channels > 0 &&
                        (!add || in.bottleneck > 0) && end <= dst.channels;
        contents[in.dst] = {end, add ? 0 : in.layers};
        return ok;
      }
      case Op::kTransition: {
        slices = held.slices;
        bool ok = all && in.out_channels > 0 && in.out_channels <= dst.channels && dst.height == src.height / 2 &&
                  dst.width == src.width / 2;
        if (in.guide >= 0) {
          const BufferSpec& guide = plan.buffers[in.guide];
          ok &= contents[in.guide].channels == guide.channels && in.guide != in.dst && in.guide != in.src &&
                guide.pixels() <= src.pixels();
          slices += contents[in.guide].slices;
        }
        contents[in.dst] = {in.out_channels, 0};
        return ok;
      }
      case Op::kHead:
        slices = held.slices;
        return all;
      case Op::kPathHead:
      case Op::kPoolSums:
        return all;
      case Op::kStore: {
        const BufferSpec own{in.in_channels, src.height, src.width};
        if (!follows(in.out_offset, plan.map)) return false;
        plan.map = in.out_offset ? BufferSpec{in.out_offset + own.values(), 1, 1} : own;
        return all;
      }
      case Op::kConv2d: {
        const bool adds = in.flags & kAccumulate, live = in.flags & kLive;
        const bool kernel = in.columns
                                ? in.stride > 0 && in.taps % in.columns == 0
                                : (in.taps == 1 || in.taps == 9) && in.dilation == 1 && halves(src, dst, in.stride);
        const bool grouped = in.groups > 1;
        if (!kernel || in.in_channels % in.groups != 0 || in.out_channels % in.groups != 0 ||
            (grouped && (live || masked || in.in_mask >= 0 || in.flags & kBfloat16)) ||
            held.channels < in.src_offset + in.in_channels || in.out_channels == 0 ||
            in.in_channels * std::max<int64_t>(in.taps, 1) >= kLargest || !has_room(in, in.out_channels, adds) ||
            (live && (!all || in.src_offset != 0)))
          return false;
        if (live && in.flags & kNormalise) slices = held.slices;
        if (!adds) written(in, in.out_channels, masked);
        return in.taps == 1 || slices == 0;
      }
      case Op::kSubsample:
        contents[in.dst] = {in.out_channels, 0};
        return all && halves(src, dst, in.stride) && in.out_offset + in.in_channels <= in.out_channels &&
               in.out_channels <= dst.channels;
      case Op::kPointwise:
      case Op::kUpsample: {
        const bool adds = in.flags & kAccumulate;
        const int64_t times = in.op == Op::kUpsample ? in.stride : 1;
        const BufferSpec large{dst.channels, src.height * times, src.width * times};
        if (!within || !has_room(in, in.in_channels, adds) || !same_map(large, dst)) return false;
        if (!adds && in.src != in.dst) written(in, in.in_channels, false);
        return true;
      }
      case Op::kFullyConnected: {
        const bool ok = in.in_channels <= src.channels && in.out_channels > 0 && dst.pixels() == 1 &&
                        has_room(in, in.out_channels, false);
        written(in, in.out_channels, false);
        return ok;
      }
      case Op::kGate:
      case Op::kLinear:
      case Op::kDecide:
        return in.src_offset + in.in_channels <= src.channels;
      default:
        return false;
    }
  }
};

Plan::Plan(const char* op, const int64_t* words, int64_t count) {
  check(count > 0 && words[0] == kPlanFormat, op, ": the plan is of format ", count > 0 ? words[0] : 0, ", expected ",
        kPlanFormat, "; make the model anew with this build");
  const bool whole = count >= kHeader && std::min(words[1], words[2]) >= 0 && std::max(words[1], words[2]) < count;
  const int64_t first = whole ? kHeader + 3 * (words[1] + words[2]) : 0;
  check(whole && words[1] > 0 && count > first && (count - first) % kInstructionFields == 0, op, ": plan of ", count,
        " words does not hold whole buffers, regions and instructions");
  check(std::min({words[3], words[4], words[5]}) >= 0, op, ": plan has costs of ", words[3], ", ", words[4], " and ",
        words[5], " as/byte, expected none below zero");
  costs = {words[3] * 1e-18, words[4] * 1e-18, words[5] * 1e-18};
  const int64_t *word = words + kHeader, *end = words + count;
  for (int64_t b = 0; b < words[1]; ++b, word += 3) {
    const BufferSpec& made = buffers.emplace_back(BufferSpec{word[0], word[1], word[2]});
    check(std::min({word[0], word[1], word[2]}) > 0 && std::max({word[0], word[1], word[2]}) < kLargest &&
              made.pixels() < kLargest,
          op, ": plan has a buffer of ", word[0], " x ", word[1], " x ", word[2]);
  }
  const int64_t instructions = (count - first) / kInstructionFields;
  for (int64_t r = 0, free = 0; r < words[2]; ++r, word += 3) {
    check(word[0] >= 0 && word[0] < kRegionKinds && word[1] >= free && word[2] > word[1] && word[2] <= instructions, op,
          ": region ", r, " of the plan is of unknown kind ", word[0], ", or from ", word[1], " to ", word[2],
          " overlaps another or leaves the ", instructions, " instructions");
    regions.push_back({static_cast<RegionKind>(word[0]), word[1], word[2]});
    free = word[2];
  }
  Checker checker{*this, std::vector<Checker::Contents>(buffers.size())};
  for (int64_t i = 0; word < end; ++i) {
    Instruction& in = code.emplace_back();
    each_field(in, [&](auto& field) { field = static_cast<std::remove_reference_t<decltype(field)>>(*word++); });
    check(in_range(in), op, ": instruction ", i, " of the plan has a size out of range");
    check(traits_of(in.op) != 0, op, ": instruction ", i, " of the plan is of unknown kind ",
          static_cast<int64_t>(in.op));
    check(checker.fits(in, slices.emplace_back(0)), op, ": instruction ", i, " of the plan does not fit its buffers");
  }
  find_streams(op);
}

void Plan::check_image(const char* op, const BufferSpec& given) const {
  check(given == image, op, ": the plan is for images of ", image.channels, " x ", image.height, " x ", image.width,
        ", got ", given.channels, " x ", given.height, " x ", given.width);
}

void Plan::check_outputs(const char* op, int64_t given_gates, int64_t given_logits, const BufferSpec& given_map) const {
  check(gates == given_gates && logits == given_logits, op, ": the plan has ", gates, " gates and ", logits,
        " logits, got gates=", given_gates, " and logits=", given_logits);
  check(map == given_map, op, ": the plan stores a map of ", map.channels, " x ", map.height, " x ", map.width,
        ", not of ", given_map.channels, " x ", given_map.height, " x ", given_map.width);
}

void Plan::find_streams(const char* op) {
  std::vector<int> root(buffers.size());
  std::iota(root.begin(), root.end(), 0);
  auto join = [&](int64_t a, int64_t b) {  // two buffers become one stream
    if (a >= 0 && b >= 0) std::replace(root.begin(), root.end(), int{root[a]}, int{root[b]});
  };
  std::vector<int64_t> decides(static_cast<size_t>(gates), -1);  // where what decides a gate is at home
  int64_t recurrent = -1;
  for (const Instruction& in : code) {
    join(in.src, in.dst), join(in.factor, in.dst);
    if (in.only_if >= 0) join(decides[in.only_if], in.home());
    if (in.out_mask >= 0) join(decides[in.out_mask], in.home());
    if (in.op == Op::kGate || in.op == Op::kDecide)
      std::fill(decides.begin() + in.first_gate, decides.begin() + gates_of_own(in), in.home());
    if (in.op == Op::kGate && in.gate == GateKind::kRecurrent)  // it goes on from the one before
      join(std::exchange(recurrent, in.home()), in.home());
  }
  std::vector<int> number(root.size(), -1);
  for (int i = 0; i < static_cast<int>(code.size()); ++i) {
    int& stream = number[root[code[i].home()]];
    if (stream < 0) stream = static_cast<int>(streams.size()), streams.emplace_back();
    streams[stream].push_back(i);
  }
  for (int r : root) stream_of.push_back(number[r]);
  for (int i = 0; i < static_cast<int>(code.size()); ++i) {
    const int64_t guide = code[i].guide;
    check(guide < 0 || stream_of[guide] == stream_of[code[i].home()] || streams[stream_of[guide]].back() < i, op,
          ": instruction ", i, " of the plan takes a guide that is not finished");
  }
}

}  // namespace dsn
