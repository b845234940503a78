// gate, decide, linear, fully_connected: what is computed from a buffer's pooled vector. A recurrent gate's LSTM keeps
// its state between gates.
#include <cmath>

#include "worker.h"

namespace dsn::cpu {
namespace {

float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

// One step of the LSTM that all gates of a network share, and the logit it gives.
float recur(Worker& w, const Instruction& in, const float* embedded) {
  using namespace recurrence;
  constexpr int n = gate::kEmbedding;
  const Layout layout = recurrence::layout();
  const Packed p{w.weights + in.shared, layout};
  float *hidden = w.recurrent_state(), *cell = hidden + n;
  if (!(in.flags & kAccumulate)) std::fill_n(hidden, 2 * n, 0.f);
  float pre[4 * n];
  for (int i = 0; i < 4 * n; ++i)
    pre[i] = p[kBias][i] + w.kernel.dot(p[kInput] + i * n, embedded, n) + w.kernel.dot(p[kHidden] + i * n, hidden, n);
  for (int i = 0; i < n; ++i) {
    cell[i] = sigmoid(pre[n + i]) * cell[i] + sigmoid(pre[i]) * std::tanh(pre[2 * n + i]);
    hidden[i] = sigmoid(pre[3 * n + i]) * std::tanh(cell[i]);
  }
  w.macs += 8 * n * n + n;
  return w.kernel.dot(p[kProjection], hidden, n) + *p[kProjectionBias];
}

}  // namespace

void Worker::decide(int64_t g, GateKind kind, float z) {
  // A NaN stays NaN and, exceeding nothing, skips its layer, as in torch.
  decide(g, kind == GateKind::kNone ? 1 : kind == GateKind::kHard ? std::clamp(z + 0.5f, 0.f, 1.f) : sigmoid(z));
  if (kind == GateKind::kNone) sample.taken[g] = 1;
}

void Worker::decide(int64_t g, float score) {
  sample.score[g] = score;
  sample.taken[g] = sample.forced ? sample.forced[g] : score > sample.threshold[g];
}

void run_gate(Worker& w, const Instruction& in) {
  using namespace listed;
  using gate::kEmbedding;
  w.team().phase(
      0, [](int64_t) {},
      [&] {
        if (w.shut(in)) return w.shut_gate(in.first_gate);
        const Packed p = w.packed(in);
        const float* pooled = w.pooled(in.src);
        const int outputs = in.gate == GateKind::kRecurrent ? kEmbedding : 1;
        float z[kEmbedding];
        for (int i = 0; i < outputs; ++i)
          z[i] = w.kernel.dot(p[kWeight] + i * in.in_channels, pooled, static_cast<int>(in.in_channels)) + p[kBias][i];
        w.macs += outputs * in.in_channels;
        w.decide(in.first_gate, in.gate, in.gate == GateKind::kRecurrent ? recur(w, in, z) : z[0]);
      });
}

void run_decide(Worker& w, const Instruction& in) {
  w.team().phase(
      0, [](int64_t) {},
      [&] {
        for (int64_t i = 0; i < in.in_channels; ++i)
          w.shut(in) ? w.shut_gate(in.first_gate + i)
                     : w.decide(in.first_gate + i, w.pooled(in.src)[in.src_offset + i]);
      });
}

namespace {

// out[k] = activation(weight[k] pooled(src) + bias[k])
void multiply(Worker& w, const Instruction& in, float* out) {
  using namespace listed;
  const Packed p = w.packed(in);
  w.team().phase(
      in.out_channels,
      [&](int64_t k) {
        const float* weight = p[kWeight] + k * in.in_channels;
        out[k] = w.kernel.dot(weight, w.pooled(in.src), static_cast<int>(in.in_channels)) + p[kBias][k];
        w.macs += in.in_channels;
      },
      [&] {
        float tile[kTile];
        for (int64_t k = 0; in.activation != Activation::kIdentity && k < in.out_channels; k += kTile) {
          const int count = static_cast<int>(std::min<int64_t>(kTile, in.out_channels - k));
          std::copy_n(out + k, count, tile);
          w.kernel.activate(tile, 1, count, in.activation, nullptr);
          std::copy_n(tile, count, out + k);
        }
      });
}

}  // namespace

void run_linear(Worker& w, const Instruction& in) {
  if (!w.shut(in)) multiply(w, in, w.sample.logits + in.out_offset);
}

void run_fully_connected(Worker& w, const Instruction& in) {
  w.live[in.dst].rewrite(static_cast<int>(in.out_offset), static_cast<int>(in.out_channels), nullptr, false);
  if (!w.shut(in)) multiply(w, in, w.pooled(in.dst) + in.out_offset);
}

}  // namespace dsn::cpu
