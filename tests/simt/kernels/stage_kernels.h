// As plan_kernels.h: residual units in a cluster.
#include "kernels/faults.h"  // first: what it defines changes the kernels

#include "cuda/resident_stage.cuh"

namespace dsn::simt::bindings::DSN_VARIANT {

// Two units of 32 channels on 8 x 8 pixels, the second behind a recurrent gate, and one that leads from there to 32
// channels on 4 x 4, in a cluster of two whose warps share k-steps. weights: the 3x3 of the units in order, the 1x1 of
// the last one's shortcut, 32 biases that all share, the gate's 10 x 32 and 10 and 2 more, the LSTM's. in_place: the
// map between the convolutions lies where the units' own is.
void resident_stage(Buffer state, Buffer next, Buffer pooled, Buffer weights, Buffer hidden, Buffer threshold,
                    Buffer taken, Buffer score, Buffer words, Buffer macs, int in_place) {
  StageParams p{};
  p.samples = {nullptr, 0, 1, nullptr};
  p.first_pooled = p.pooled = pooled.data<float>();
  p.macs = macs.data<unsigned long long>();
  p.weights = weights.data<unsigned char>();
  p.maps = p.blocks = 2;
  p.pools = true;
  p.own_gates = 1;
  constexpr int kConv = 9 * 32 * 32 * 2 / 16, kShortcut = 6 * kConv, kBias = kShortcut + 32 * 32 * 2 / 16;
  constexpr int kOwn = kBias + 8;
  for (int m = 0; m < 2; ++m) {
    StageMap& map = p.at[m];
    const int side = 8 >> m;
    map.map = {m ? next.address : state.address, side * side * 32, 32, side, side};
    map.pixels = static_cast<float>(side * side);
    map.groups = 8, map.channels = map.columns = 32;
    map.first_unit = 2 * m, map.units = 2 - m;
    map.shortcut = kShortcut, map.shortcut_bias = kBias;
    map.rows = side / 2, map.down = 2, map.across = 1;
    map.tiles = map.strips = 1, map.pieces = side / 4, map.split = 2;
    map.pitch = 10, map.stride = 48, map.frame_rows = side / 2 + 2;
    map.weight_pitch = 32 * kGroup + kConvPadding;
    map.received_pitch = 8;
    map.source_pitch = 17, map.source_stride = 48, map.source_rows = side + 1;
    map.bias_bytes = 32 * 4;
    map.weight_bytes = 9 * 8 * map.weight_pitch * 2;
    int at = kHeaderBytes;
    auto place = [&](int bytes) { return std::exchange(at, (at + bytes + 15) / 16 * 16); };
    map.at_gate = place(kGateBytes);
    map.at_limits = place(8);
    map.at_hidden = place(80);
    map.at_pooled = place(32 * 4);
    map.at_shared = place(852 * 4);
    map.at_embed = place(332 * 4);
    map.at_received = place(32 * map.received_pitch * 4);
    map.at_bias = place(3 * map.bias_bytes);
    map.at_parts = place(kStageThreads * 4 * 4);
    map.at_state = place(60 * map.stride * 2);
    map.at_mid = in_place ? map.at_state : place(60 * map.stride * 2);
    map.at_source = place(5 * 17 * map.source_stride * 2);
    map.at_shortcut = place(8 * map.weight_pitch * 2);
    map.at_weights = place(2 * map.weight_bytes);
    map.shared_bytes = at;
  }
  for (int i = 0; i < 3; ++i) p.unit[i] = {{2 * i * kConv, (2 * i + 1) * kConv}, {kBias, kBias}, i == 1 ? 0 : -1};
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
  start<resident_stage_kernel<__half>>(p, 2, kStageThreads, p.at[0].shared_bytes, 2);
}

static const Binder bind_resident_stage(DSN_NAME(resident_stage, DSN_TEXT(DSN_VARIANT)), resident_stage);

}  // namespace dsn::simt::bindings::DSN_VARIANT
