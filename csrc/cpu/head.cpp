// head: BN-ReLU-GAP-linear. path_head: the same with features that the path through the network scales and shifts.
#include "worker.h"

namespace dsn::cpu {
namespace {

// features[c] = the mean of relu(scale x + shift) for the live channels c; then `finish`, by one thread.
template <class Finish>
void pool_features(Worker& w, const Instruction& in, const float* scale, const float* shift, const Finish& finish) {
  const BufferSpec& map = w.plan.buffers[in.src];
  const Live& live = w.live[in.src];
  float* features = w.features();
  w.team().phase(
      live.count(),
      [&](int64_t i) {
        const int c = live.channels[i];
        features[c] = w.kernel.normalised_sum(w.state(in.src) + c * kTile, map.channels * kTile,
                                              static_cast<int>(map.pixels()), scale[c], shift[c]) /
                      static_cast<float>(map.pixels());
      },
      [&] { finish(features); });
}

}  // namespace

void run_head(Worker& w, const Instruction& in) {
  using namespace head;
  const Live& live = w.live[in.src];
  const int64_t classes = in.out_channels;
  const Packed p = w.packed(in);
  pool_features(w, in, p[kScale], p[kShift], [&](const float* features) {
    float* logits = w.sample.logits + in.out_offset;
    std::copy_n(p[kBias], classes, logits);
    for (int slice : live.skipped)
      for (int64_t k = 0; k < classes; ++k) logits[k] += p[kConstants][slice * classes + k];
    for (int c : live.channels)
      for (int64_t k = 0; k < classes; ++k) logits[k] += features[c] * p[kWeight][c * classes + k];
    w.macs += live.count() * classes;
  });
}

void run_path_head(Worker& w, const Instruction& in) {
  using namespace path_head;
  const int64_t classes = in.out_channels, channels = in.in_channels;
  const Packed p = w.packed(in);
  pool_features(w, in, p[kScale], p[kShift], [&](const float* pooled) {
    std::vector<float> features(channels), path(p[kPathBias], p[kPathBias] + 2 * channels);
    for (int64_t c = 0; c < channels; ++c) features[c] = std::max(p[kShift][c], 0.f);  // where a slice was skipped
    for (int c : w.live[in.src].channels) features[c] = pooled[c];
    for (int64_t l = 0; l < in.layers; ++l)
      if (w.sample.taken[in.first_gate + l])
        for (int64_t i = 0; i < 2 * channels; ++i) path[i] += p[kPath][l * 2 * channels + i];
    float* logits = w.sample.logits + in.out_offset;
    std::copy_n(p[kBias], classes, logits);
    for (int64_t c = 0; c < channels; ++c) {
      const float feature = (1 + path[c]) * features[c] + path[channels + c];
      for (int64_t k = 0; k < classes; ++k) logits[k] += feature * p[kWeight][c * classes + k];
    }
    w.macs += channels * (classes + 1);
  });
}

}  // namespace dsn::cpu
