// network: a whole network, sample by sample; dense_block, preact_conv2d and head are plans of one instruction.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <optional>
#include <tuple>

#include "arena.h"
#include "plan_check.h"
#include "worker.h"

namespace dsn::cpu {

MemoryMap map_memory(const Plan& plan, int team_size) {
  MemoryMap m;
  auto reserve = [&](int64_t floats) { return std::exchange(m.size, m.size + round_up(floats, kAlign)); };
  int64_t tile_channels = 0, patches = 0, features = 0;
  for (const BufferSpec& b : plan.buffers) {
    m.buffers.push_back({reserve(b.channels * b.tiles() * kTile), reserve(b.channels * b.tiles()), reserve(b.channels)});
    m.plane_stride = std::max(m.plane_stride, (b.tiles() + 4) * kTile);
    tile_channels = std::max(tile_channels, b.channels);
  }
  for (const Instruction& in : plan.code) {
    if (in.op == Op::kStem) patches = std::max(patches, Patches(plan.buffers[in.dst], in.in_channels).floats(team_size));
    if (in.op == Op::kDenseBlock) {
      const BufferSpec& map = plan.buffers[in.dst];
      patches = std::max(patches, Patches(map, in.bottleneck ? in.bottleneck : map.channels).floats(team_size));
      tile_channels = std::max(tile_channels, in.bottleneck);
    }
    if (in.op == Op::kTransition) {
      const int64_t guide = in.guide >= 0 ? plan.buffers[in.guide].channels : 0;
      tile_channels = std::max(tile_channels, in.in_channels + guide);
    }
    if (in.op == Op::kHead) features = std::max(features, in.in_channels);
  }
  m.patches = reserve(patches + kAlign);
  m.features = reserve(features);
  m.scratch_stride = (tile_channels + 1) * kTile + 4 * m.plane_stride;
  m.scratch = reserve(m.scratch_stride * team_size);
  return m;
}

int64_t phase_count(const Plan& plan) {
  int64_t phases = 0;
  for (const Instruction& in : plan.code) phases += in.op == Op::kDenseBlock ? 1 + 2 * in.layers : 2;
  return phases;
}

void Worker::run() {
  for (const Instruction& in : plan.code) {
    switch (in.op) {
      case Op::kLoad:
        run_load(*this, in);
        break;
      case Op::kStem:
        run_stem(*this, in);
        break;
      case Op::kDenseBlock:
        run_dense_block(*this, in);
        break;
      case Op::kTransition:
        run_transition(*this, in);
        break;
      case Op::kHead:
        run_head(*this, in);
        break;
      case Op::kStore:
        run_store(*this, in);
        break;
    }
  }
  sample.macs->fetch_add(macs, std::memory_order_relaxed);
}

namespace {

using torch::stable::Tensor;

struct Outputs {
  Tensor logits, map, gates, scores, macs;
};

struct Batch {
  const Plan& plan;
  const float* weights;
  int64_t size;
  std::vector<std::atomic<int64_t>> macs;
  Sample first;  // pointers of sample 0
  int64_t image_stride, map_stride;

  Sample sample(int64_t i) {
    Sample s = first;
    s.image += i * image_stride;
    if (s.forced) s.forced += i * plan.gates;
    s.taken += i * plan.gates;
    s.score += i * plan.gates;
    s.logits += i * plan.logits;
    s.map += i * map_stride;
    s.macs = &macs[i];
    return s;
  }
};

// Whole rounds of samples go one to a thread; what is left over is shared by all threads.
void run_batch(Batch& batch) {
  const int threads = std::min<int>(static_cast<int>(torch::stable::get_num_threads()), Team::kMaxSize);
  const int64_t singles = threads == 1 ? batch.size : batch.size / threads * threads;
  const int64_t shared = batch.size - singles;
  const MemoryMap alone = map_memory(batch.plan, 1), together = map_memory(batch.plan, threads);

  std::vector<std::unique_ptr<Arena>> arenas;
  if (singles)
    for (int t = 0; t < threads; ++t) arenas.push_back(std::make_unique<Arena>(alone.size));
  std::unique_ptr<Arena> shared_arena;
  if (shared) shared_arena = std::make_unique<Arena>(std::max(together.size, alone.size));
  const int64_t phases = phase_count(batch.plan);
  std::vector<PhaseFlags> flags(static_cast<size_t>(shared * phases));
  std::atomic<int64_t> next{0};

  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    const int rank = static_cast<int>(begin);
    const bool only_thread = end - begin == threads;  // nested in another parallel region
    const int64_t mine = only_thread ? batch.size : singles;
    float* arena = singles ? arenas[rank]->data() : only_thread ? shared_arena->data() : nullptr;
    for (int64_t i; (i = next.fetch_add(1)) < mine;)
      Worker(batch.plan, alone, batch.weights, arena, Team(), batch.sample(i)).run();
    if (only_thread) return;
    for (int64_t i = 0; i < shared; ++i)
      Worker(batch.plan, together, batch.weights, shared_arena->data(), Team(rank, threads, &flags[i * phases]),
             batch.sample(singles + i))
          .run();
  });
}

Outputs run(const char* op, const Plan& plan, const BufferSpec& input, const Tensor& image, const Tensor& weights,
            const std::optional<Tensor>& thresholds, const std::optional<Tensor>& forced, const BufferSpec& output) {
  const int64_t batch = image.size(0);
  check_tensor(op, "image", image, ScalarType::Float, {-1, input.channels, input.height, input.width});
  if (thresholds) check_tensor(op, "thresholds", *thresholds, ScalarType::Float, {plan.gates});
  if (forced) check_tensor(op, "forced_gates", *forced, ScalarType::Byte, {batch, plan.gates});

  Outputs out{torch::stable::new_empty(image, {batch, plan.logits}),
              torch::stable::new_empty(image, {batch, output.channels, output.height, output.width}),
              torch::stable::new_empty(image, {batch, plan.gates}, ScalarType::Byte),
              torch::stable::new_empty(image, {batch, plan.gates}),
              torch::stable::new_empty(image, {batch}, ScalarType::Long)};
  if (batch == 0) return out;

  const Tensor x = torch::stable::contiguous(image), w = torch::stable::contiguous(weights);
  std::vector<float> threshold(plan.gates, 0.5f);
  if (thresholds) {
    const Tensor t = torch::stable::contiguous(*thresholds);
    std::copy_n(t.const_data_ptr<float>(), plan.gates, threshold.begin());
  }
  for (float t : threshold) STD_TORCH_CHECK(t >= 0 && t <= 1, op, ": thresholds must lie in [0, 1], got ", t);
  std::optional<Tensor> f;
  if (forced) {
    f = torch::stable::contiguous(*forced);
    const uint8_t* values = f->const_data_ptr<uint8_t>();
    for (int64_t i = 0; i < f->numel(); ++i)
      STD_TORCH_CHECK(values[i] <= 1, op, ": forced_gates must hold 0 (skip) or 1 (run), got ", static_cast<int>(values[i]));
  }

  Batch b{plan,
          w.const_data_ptr<float>(),
          batch,
          std::vector<std::atomic<int64_t>>(static_cast<size_t>(batch)),
          {x.const_data_ptr<float>(), f ? f->const_data_ptr<uint8_t>() : nullptr, threshold.data(),
           out.gates.mutable_data_ptr<uint8_t>(), out.scores.mutable_data_ptr<float>(),
           out.logits.mutable_data_ptr<float>(), out.map.mutable_data_ptr<float>(), nullptr},
          input.channels * input.pixels(),
          output.channels * output.pixels()};
  run_batch(b);
  int64_t* macs = out.macs.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < batch; ++i) macs[i] = b.macs[i].load();
  return out;
}

BufferSpec map_of(const char* op, const char* name, const Tensor& x, const Tensor& weights) {
  check_tensor(op, name, x, ScalarType::Float, {-1, -1, -1, -1});
  check_tensor(op, "weights", weights, ScalarType::Float, {-1});
  return {x.size(1), x.size(2), x.size(3)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> network_cpu(const Tensor& image, const Tensor& weights, const Tensor& thresholds,
                                                       const std::optional<Tensor>& forced_gates, std::vector<int64_t> plan_words) {
  const BufferSpec input = map_of("network", "image", image, weights);
  const Plan plan = read_plan("network", plan_words, input, weights.numel());
  Outputs out = run("network", plan, input, image, weights, thresholds, forced_gates, {0, 1, 1});
  return {out.logits, out.gates, out.scores, out.macs};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dense_block_cpu(const Tensor& x, const Tensor& weights, const Tensor& thresholds,
                                                           const std::optional<Tensor>& forced_gates, int64_t growth, int64_t layers,
                                                           int64_t bottleneck, int64_t gate, int64_t merge) {
  const BufferSpec input = map_of("dense_block", "x", x, weights);
  BufferSpec map = input;
  if (merge == static_cast<int64_t>(Merge::kConcat)) map.channels += growth * layers;
  Plan plan{{map},
            {{Op::kLoad, -1, 0, input.channels, 0, 0, 0, GateKind::kNone, Merge::kConcat, 0, 0, -1, 0},
             {Op::kDenseBlock, 0, 0, input.channels, growth, layers, bottleneck, static_cast<GateKind>(gate), static_cast<Merge>(merge),
              0, 0, -1, 0},
             {Op::kStore, 0, -1, map.channels, 0, 0, 0, GateKind::kNone, Merge::kConcat, 0, 0, -1, 0}}};
  check_plan("dense_block", plan, input, weights.numel());
  Outputs out = run("dense_block", plan, input, x, weights, thresholds, forced_gates, map);
  return {out.map, out.gates, out.scores, out.macs};
}

Tensor preact_conv2d_cpu(const Tensor& x, const Tensor& weights, int64_t out_channels) {
  const BufferSpec input = map_of("preact_conv2d", "x", x, weights);
  STD_TORCH_CHECK(input.height > 1 && input.width > 1, "preact_conv2d: x must be at least 2 x 2, got ", shape_of(x));
  const BufferSpec map{out_channels, input.height / 2, input.width / 2};
  Plan plan{{input, map},
            {{Op::kLoad, -1, 0, input.channels, 0, 0, 0, GateKind::kNone, Merge::kConcat, 0, 0, -1, 0},
             {Op::kTransition, 0, 1, input.channels, out_channels, 0, 0, GateKind::kNone, Merge::kConcat, 0, 0, -1, 0},
             {Op::kStore, 1, -1, out_channels, 0, 0, 0, GateKind::kNone, Merge::kConcat, 0, 0, -1, 0}}};
  check_plan("preact_conv2d", plan, input, weights.numel());
  return run("preact_conv2d", plan, input, x, weights, std::nullopt, std::nullopt, map).map;
}

Tensor head_cpu(const Tensor& x, const Tensor& weights, int64_t classes) {
  const BufferSpec input = map_of("head", "x", x, weights);
  Plan plan{{input},
            {{Op::kLoad, -1, 0, input.channels, 0, 0, 0, GateKind::kNone, Merge::kConcat, 0, 0, -1, 0},
             {Op::kHead, 0, -1, input.channels, classes, 0, 0, GateKind::kNone, Merge::kConcat, 0, 0, -1, 0}}};
  check_plan("head", plan, input, weights.numel());
  return run("head", plan, input, x, weights, std::nullopt, std::nullopt, {0, 1, 1}).logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dsn, CPU, m) {
  m.impl("network", TORCH_BOX(&network_cpu));
  m.impl("dense_block", TORCH_BOX(&dense_block_cpu));
  m.impl("preact_conv2d", TORCH_BOX(&preact_conv2d_cpu));
  m.impl("head", TORCH_BOX(&head_cpu));
}

}  // namespace dsn::cpu
