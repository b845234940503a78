// A plan read from its integers, checked so that no instruction can leave its memory.
#include "plan_check.h"

#include <algorithm>

namespace dsn::cpu {
namespace {

constexpr int64_t kLargest = int64_t{1} << 24;

int64_t weight_floats(const Plan& plan, const Instruction& in, int64_t slices) {
  switch (in.op) {
    case Op::kStem:
      return stem::layout(in.in_channels, in.out_channels).size;
    case Op::kDenseBlock: {
      int64_t floats = 0;
      for (int64_t l = 0; l < in.layers; ++l) {
        const int64_t channels = in.in_channels + (in.merge == Merge::kAdd ? 0 : l * in.out_channels);
        floats += dense_layer::layout(channels, in.out_channels, in.bottleneck, l, in.merge).size;
      }
      return floats;
    }
    case Op::kTransition: {
      const int64_t guide = in.guide >= 0 ? plan.buffers[in.guide].channels : 0;
      return transition::layout(in.in_channels + guide, in.out_channels, slices).size;
    }
    case Op::kHead:
      return head::layout(in.in_channels, in.out_channels, slices).size;
    default:
      return 0;
  }
}

}  // namespace

Plan read_plan(const char* op, const std::vector<int64_t>& words, const BufferSpec& image, int64_t weight_count) {
  STD_TORCH_CHECK(!words.empty() && words[0] > 0 && words[0] < 64, op, ": plan must start with its number of buffers");
  const auto buffers = static_cast<size_t>(words[0]);
  STD_TORCH_CHECK(words.size() > 1 + buffers * kBufferFields &&
                      (words.size() - 1 - buffers * kBufferFields) % kInstructionFields == 0,
                  op, ": plan of ", words.size(), " words does not hold whole instructions");
  Plan plan;
  size_t at = 1;
  for (size_t b = 0; b < buffers; ++b, at += kBufferFields) plan.buffers.push_back({words[at], words[at + 1], words[at + 2]});
  for (; at < words.size(); at += kInstructionFields) {
    const int64_t* f = &words[at];
    plan.code.push_back({static_cast<Op>(f[0]), f[1], f[2], f[3], f[4], f[5], f[6], static_cast<GateKind>(f[7]),
                         static_cast<Merge>(f[8]), f[9], f[10], f[11], f[12]});
  }
  check_plan(op, plan, image, weight_count);
  return plan;
}

void check_plan(const char* op, Plan& plan, const BufferSpec& image, int64_t weight_count) {
  for (const BufferSpec& b : plan.buffers)
    STD_TORCH_CHECK(b.channels > 0 && b.height > 0 && b.width > 0 && b.channels < kLargest && b.pixels() < kLargest, op,
                    ": plan has a buffer of ", b.channels, " x ", b.height, " x ", b.width);
  struct Contents {  // of a buffer while the plan runs
    int64_t channels = 0, slices = 0;
  };
  std::vector<Contents> contents(plan.buffers.size());
  auto buffer = [&](int64_t b) -> const BufferSpec& {
    STD_TORCH_CHECK(b >= 0 && b < static_cast<int64_t>(plan.buffers.size()), op, ": plan names buffer ", b, " of ",
                    plan.buffers.size());
    return plan.buffers[b];
  };
  auto fits = [&](bool ok, size_t i) { STD_TORCH_CHECK(ok, op, ": instruction ", i, " of the plan does not fit its buffers"); };
  auto same_map = [](const BufferSpec& a, const BufferSpec& b) { return a.height == b.height && a.width == b.width; };
  for (size_t i = 0; i < plan.code.size(); ++i) {
    const Instruction& in = plan.code[i];
    STD_TORCH_CHECK(in.in_channels > 0 && in.out_channels >= 0 && in.layers >= 0 && in.bottleneck >= 0 && in.in_channels < kLargest &&
                        in.out_channels < kLargest && in.layers < kLargest && in.bottleneck < kLargest && in.weights >= 0 &&
                        in.first_gate >= 0 && in.out_offset >= 0 && in.guide >= -1,
                    op, ": instruction ", i, " of the plan has a size out of range");
    int64_t slices = 0;
    switch (in.op) {
      case Op::kLoad:
      case Op::kStem: {
        const BufferSpec& dst = buffer(in.dst);
        const int64_t out = in.op == Op::kLoad ? in.in_channels : in.out_channels;
        fits(same_map(dst, image) && in.in_channels == image.channels && out > 0 && out <= dst.channels, i);
        contents[in.dst] = {out, 0};
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
        fits(in.src != in.dst && contents[in.src].channels == in.in_channels && in.out_channels > 0 && in.out_channels <= dst.channels &&
                 dst.height == src.height / 2 && dst.width == src.width / 2,
             i);
        slices = contents[in.src].slices;
        if (in.guide >= 0) {
          const BufferSpec& guide = buffer(in.guide);
          fits(contents[in.guide].channels == guide.channels && in.guide != in.dst && in.guide != in.src && guide.pixels() <= src.pixels(), i);
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
      case Op::kStore:
        buffer(in.src);
        fits(contents[in.src].channels == in.in_channels, i);
        break;
      default:
        STD_TORCH_CHECK(false, op, ": instruction ", i, " of the plan is of unknown kind ", static_cast<int64_t>(in.op));
    }
    STD_TORCH_CHECK(in.weights + weight_floats(plan, in, slices) <= weight_count, op, ": weights hold ", weight_count,
                    " floats, instruction ", i, " of the plan needs more; pack them anew");
  }
}

}  // namespace dsn::cpu
