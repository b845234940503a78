// head: BN-ReLU-GAP-linear.
#include "worker.h"

namespace dsn::cpu {

using namespace head;

void run_head(Worker& w, const Instruction& in) {
  const BufferSpec& map = w.plan.buffers[in.src];
  const Live& live = w.live[in.src];
  const int64_t classes = in.out_channels;
  const Packed p = w.packed(in);
  float* features = w.features();  // [channels], live ones only

  w.team().phase(
      live.count(),
      [&](int64_t i) {
        const int c = live.channels[i];
        features[c] = w.kernel.normalised_sum(w.state(in.src) + c * kTile, map.channels * kTile,
                                              static_cast<int>(map.pixels()), p[kScale][c], p[kShift][c]) /
                      static_cast<float>(map.pixels());
      },
      [&] {
        float* logits = w.sample.logits + in.out_offset;
        std::copy_n(p[kBias], classes, logits);
        for (int slice : live.skipped)
          for (int64_t k = 0; k < classes; ++k) logits[k] += p[kConstants][slice * classes + k];
        for (int c : live.channels)
          for (int64_t k = 0; k < classes; ++k) logits[k] += features[c] * p[kWeight][c * classes + k];
        w.macs += live.count() * classes;
      });
}

}  // namespace dsn::cpu
