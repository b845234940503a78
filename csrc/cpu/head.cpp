// head: BN-ReLU-GAP-linear.
#include "worker.h"

namespace dsn::cpu {

using namespace head;

void run_head(Worker& w, const Instruction& in) {
  const BufferSpec& map = w.plan.buffers[in.src];
  const Live& live = w.live[in.src];
  const int64_t classes = in.out_channels;
  const Packed p = w.packed(in);
  float* features = w.arena + w.memory.features;  // [channels], live ones only

  std::vector<int> channel;
  for (const Run& r : live.runs)
    for (int c = 0; c < r.count; ++c) channel.push_back(r.begin + c);
  w.team.phase(
      static_cast<int64_t>(channel.size()),
      [&](int64_t i) {
        const int c = channel[i];
        features[c] = w.kernel.normalised_sum(w.state(in.src) + c * kTile, map.channels * kTile,
                                              static_cast<int>(map.pixels()), p[kScale][c], p[kShift][c]) /
                      static_cast<float>(map.pixels());
      },
      [&] {
        for (int64_t k = 0; k < classes; ++k) {
          float logit = p[kBias][k];
          for (int slice : live.skipped) logit += p[kConstants][slice * classes + k];
          for (const Run& r : live.runs) {
            logit += w.kernel.dot(p[kWeight] + k * in.in_channels + r.begin, features + r.begin, r.count);
            w.macs += r.count;
          }
          w.sample.logits[in.out_offset + k] = logit;
        }
      });
}

}  // namespace dsn::cpu
