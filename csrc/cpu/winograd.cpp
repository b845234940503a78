// A conv2d by Winograd's F(2x2, 3x3).
#include "winograd.h"

namespace dsn::cpu {

void run_winograd(Worker& w, const Instruction& in) {
  using namespace conv2d;
  const Packed p = w.packed(in);
  const bool pool = in.flags & kPool;
  Winograd all(w, in.in_channels, in.out_channels, in.dst, in.out_offset, pool);
  all.group.src = w.state(in.src) + in.src_offset * kTile;
  all.group.src_tile_stride = w.plan.buffers[in.src].channels * kTile;
  all.group.weight = p[kWinogradWeight];
  all.group.bias = p[kBias];
  all.group.accumulate = in.flags & kAccumulate;
  all.group.relu = in.activation == Activation::kRelu;
  w.team().phase(
      all.items(), [&](int64_t i) { all.run(i); },
      [&] {
        if (pool) w.pool(in.dst, in.out_offset, in.out_offset + in.out_channels);
      });
}

}  // namespace dsn::cpu
