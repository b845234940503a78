// A network as a list of instructions that one worker runs for one sample.
#pragma once

#include <cstdint>
#include <vector>

#include "layout.h"

namespace dsn {

// The state of a block: its input channels, then one slice per layer.
struct BufferSpec {
  int64_t channels, height, width;
  int64_t pixels() const { return height * width; }
  int64_t tiles() const { return ceil_div(pixels(), kTile); }
  bool operator==(const BufferSpec&) const = default;
};

enum class Op : int64_t {
  kLoad,
  kStem,
  kDenseBlock,
  kTransition,
  kHead,
  kStore,
  kConv2d,
  kSubsample,  // dst = src at every stride-th pixel, its channels from out_offset on, zeros in the others
  kMaxPool,    // of a window of `taps` pixels; pixels outside the map count neither here nor in an average
  kAvgPool,
  kPoolSums,  // keep src's pooled vector
  kAdd,       // in_channels of dst, from out_offset on, += those of src, from src_offset on
  kGate,      // decides gate first_gate from src's pooled vector
  kLinear,    // logits from src's pooled vector
  kTanh,      // of the first in_channels of src, in place
  kPathHead,  // a head whose features are scaled and shifted by the gates from first_gate on
};
enum class GateKind : int64_t { kNone, kHard, kSoft, kRecurrent };

// What surrounds a convolution.
enum Flags : int64_t {
  kNormalise = 1,   // BN-ReLU of its input
  kRelu = 2,        // of its output
  kAccumulate = 4,  // dst += instead of dst =; a recurrent gate: go on from the gate before
  kPool = 8,        // keep dst's pooled vector
  kWinograd = 16,   // a 3x3 on the CPU by Winograd's F(2x2, 3x3); its weights are packed for both ways
  kLive = 32,       // read only the channels of src that hold data; BN-ReLU makes the others constants
  kMeans = 64,      // on a GPU, with kNormalise: a 1x1 of stride 2 of the means of 2x2 pixels, as a transition
  kBfloat16 = 128,  // a dense block or conv2d on the CPU: weights and inputs in pairs of bfloat16, the state float32
};

// One record of the plan; what an instruction does not use is zero (buffers: -1).
struct Instruction {
  Op op;
  int64_t src = -1, dst = -1;          // buffers; a dense block works in place on dst
  int64_t in_channels = 0;             // of src that are read (guide not counted)
  int64_t out_channels = 0;            // growth rate, transition width, classes
  int64_t layers = 0, bottleneck = 0;  // dense block
  GateKind gate = GateKind::kNone;     // dense block
  Merge merge = Merge::kConcat;        // dense block
  int64_t weights = 0;                 // offset of the first field in the packed weights
  int64_t first_gate = 0;              // dense block: column of its first layer in the gate arrays
  int64_t guide = -1;                  // transition: buffer of the guide, -1 without
  int64_t out_offset = 0;              // head, linear: first logit; else: first channel of dst
  int64_t taps = 0, stride = 0;        // of a kernel or window; stride of a subsampling too
  int64_t flags = 0;                   // Flags
  int64_t only_if = -1;                // a gate: the instruction runs where it is open
  int64_t out_mask = -1;               // load, convolution, pool: first of the gates that choose its channels
  int64_t in_mask = -1;                // convolution: the mask by which one convolution wrote all its input
  int64_t shared = 0;                  // recurrent gate: offset of the weights that all its gates share
  int64_t src_offset = 0;              // add, convolution: first channel of src
  int64_t relu_channels = 0;           // convolution: so many outputs get the ReLU, 0: all
  // Columns of a kernel or window, and how many rows and columns of zeros lie before the map; if negative, so many of
  // the map's own are passed over. A convolution with columns = 0 is 1x1 or 3x3, of stride 1 or 2, and keeps the size.
  int64_t columns = 0, pad_rows = 0, pad_columns = 0;
};
constexpr int kInstructionFields = 25;

// Calls visit with each field of an instruction, in the order of a plan's words.
template <class Record, class Visit>
void each_field(Record& in, const Visit& visit) {
  visit(in.op), visit(in.src), visit(in.dst), visit(in.in_channels), visit(in.out_channels), visit(in.layers);
  visit(in.bottleneck), visit(in.gate), visit(in.merge), visit(in.weights), visit(in.first_gate), visit(in.guide);
  visit(in.out_offset), visit(in.taps), visit(in.stride), visit(in.flags), visit(in.only_if), visit(in.out_mask);
  visit(in.in_mask), visit(in.shared), visit(in.src_offset), visit(in.relu_channels), visit(in.columns),
      visit(in.pad_rows);
  visit(in.pad_columns);
}
constexpr int kBufferFields = 3;

struct Plan {
  std::vector<BufferSpec> buffers;
  std::vector<Instruction> code;
  int64_t gates = 0;   // gated layers of all blocks
  int64_t logits = 0;  // outputs of all heads
};

}  // namespace dsn
