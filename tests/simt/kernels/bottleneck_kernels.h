// As plan_kernels.h: bottleneck units in a cluster.
#include "kernels/faults.h"  // first: what it defines changes the kernels

#include "cuda/resident_bottleneck.cuh"

namespace dsn::simt::bindings::DSN_VARIANT {

// Two units of 32 channels, 16 of them in the middle, on 8 x 8 pixels in a cluster of two; the second has filters that
// are chosen. weights: scale and shift, 1x1, 3x3 and 1x1 of either unit, 32 biases that all share. lists: 16, 16 and 32
// places, which are on; counts [3]. one_frame: both units' middles lie in one place.
void resident_bottleneck(Buffer state, Buffer weights, Buffer lists, Buffer counts, Buffer macs, int one_frame) {
  BottleneckParams p{};
  p.samples = {nullptr, 0, 1, nullptr};
  p.map = {state.address, 64 * 32, 32, 8, 8};
  p.macs = macs.data<unsigned long long>();
  p.weights = weights.data<unsigned char>();
  p.lists = lists.data<uint16_t>();
  p.counts = counts.data<int32_t>();
  p.list_stride = p.list_row = 64, p.count_stride = 3;
  p.units = 2;
  p.channels = p.columns = 32, p.groups = 8;
  p.width = p.width_columns = 16, p.width_groups = 4;
  p.rows = 4, p.blocks = 2;
  p.state_stride = 48, p.width_stride = 16;
  constexpr int kRows[3] = {8, 9 * 4, 4}, kColumns[3] = {16, 16, 32};
  int at = kHeaderBytes, place = 0;
  auto reserve = [&](int bytes) { return std::exchange(at, (at + bytes + 15) / 16 * 16); };
  p.at_counts = reserve(6 * 4);
  p.at_lists = reserve(2 * 64 * 2);
  p.at_norm = reserve(2 * 32 * 2);
  p.at_parts = reserve(kStageThreads * kBottleneckTiles * 4 * 4);
  p.at_state = reserve(32 * 48 * 2);
  p.at_inner = reserve(32 * 16 * 2);
  p.at_mid[0] = reserve(60 * 16 * 2);
  p.at_mid[1] = one_frame ? p.at_mid[0] : reserve(60 * 16 * 2);
  for (int conv = 0; conv < 3; ++conv) {
    p.pitch[conv] = kColumns[conv] * kGroup + kConvPadding;
    p.at_bias[conv] = reserve(kColumns[conv] * 4);
    p.at_weights[conv] = reserve(kRows[conv] * p.pitch[conv] * 2);
  }
  for (int unit = 0; unit < 2; ++unit) {
    p.unit[unit].norm = std::exchange(place, place + 2 * 32 * 2 / 16);
    for (int conv = 0, list = 0; conv < 3; list += kColumns[conv++]) {
      p.unit[unit].conv[conv] = {place, 0, unit ? list : -1, conv};
      place += kRows[conv] * kColumns[conv] * kGroup * 2 / 16;
    }
  }
  for (BottleneckUnit& unit : p.unit)
    for (BottleneckConv& conv : unit.conv) conv.bias = place;
  start<resident_bottleneck_kernel<__half>>(p, 2, kStageThreads, at, 2);
}

static const Binder bind_resident_bottleneck(DSN_NAME(resident_bottleneck, DSN_TEXT(DSN_VARIANT)), resident_bottleneck);

}  // namespace dsn::simt::bindings::DSN_VARIANT
