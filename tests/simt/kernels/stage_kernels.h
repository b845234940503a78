// As plan_kernels.h: residual units in a cluster.
#include "kernels/faults.h"  // first: what it defines changes the kernels

#include "cuda/resident_stage.cuh"

namespace dsn::simt::bindings::DSN_VARIANT {

// Two units of 32 channels on 8 x 8 pixels, the second behind a recurrent gate, in a cluster of two whose warps share
// k-steps in pairs. weights: the four 3x3, 32 biases that all share, the gate's 10 x 32 and 10 and 2 more, the LSTM's.
// in_place: the map between the convolutions lies where the units' own is.
void resident_stage(Buffer state, Buffer pooled, Buffer weights, Buffer hidden, Buffer threshold, Buffer taken,
                    Buffer score, Buffer words, Buffer macs, int in_place) {
  StageParams p{};
  p.samples = {nullptr, 0, 1, nullptr};
  p.map = {state.address, 64 * 32, 32, 8, 8};
  p.pooled = pooled.data<float>();
  p.macs = macs.data<unsigned long long>();
  p.weights = weights.data<unsigned char>();
  p.pixels = 64;
  p.units = 2;
  p.groups = 8, p.channels = p.columns = 32;
  p.own_gates = 1;
  p.rows = 4, p.down = 2, p.across = 1;
  p.tiles = p.strips = 1, p.pieces = 2, p.split = 2;
  p.pitch = 10, p.stride = 48, p.frame_rows = 6;
  p.weight_pitch = 32 * kGroup + kConvPadding;
  p.received_pitch = 8;
  p.bias_bytes = 32 * 4;
  p.weight_bytes = 9 * 8 * p.weight_pitch * 2;
  int at = kHeaderBytes;
  auto place = [&](int bytes) { return std::exchange(at, (at + bytes + 15) / 16 * 16); };
  p.at_gate = place(kGateBytes);
  p.at_limits = place(8);
  p.at_hidden = place(80);
  p.at_pooled = place(32 * 4);
  p.at_received = place(32 * p.received_pitch * 4);
  p.at_shared = place(852 * 4);
  p.at_embed = place(332 * 4);
  p.at_bias = place(2 * p.bias_bytes);
  p.at_parts = place(kStageThreads * 4 * 4);
  p.at_state = place(60 * p.stride * 2);
  p.at_mid = in_place ? p.at_state : place(60 * p.stride * 2);
  p.at_weights = place(2 * p.weight_bytes);
  constexpr int kConv = 9 * 32 * 32 * 2 / 16, kBias = 4 * kConv, kOwn = kBias + 8;
  for (int i = 0; i < 2; ++i) p.unit[i] = {{2 * i * kConv, (2 * i + 1) * kConv}, {kBias, kBias}, i - 1};
  UnitGates& g = p.gates;
  g.weights = p.weights;
  const float* s = weights.data<float>() + kOwn * 4 + 332;
  g.shared = {s, s + 400, s + 800, s + 840, s + 850};
  g.hidden = hidden.data<float>();
  g.threshold = threshold.data<float>();
  g.taken = taken.data<uint8_t>();
  g.score = score.data<float>();
  g.words = words.data<unsigned long long>();
  g.gates = g.word_count = g.count = 1;
  g.channels = 32;
  g.first = -1;
  g.kind = GateKind::kRecurrent;
  g.unit[0] = {kOwn, kOwn + 80, 0, -1};
  start<resident_stage_kernel<__half, 1, 1>>(p, 2, kStageThreads, at, 2);
}

static const Binder bind_resident_stage(DSN_NAME(resident_stage, DSN_TEXT(DSN_VARIANT)), resident_stage);

}  // namespace dsn::simt::bindings::DSN_VARIANT
