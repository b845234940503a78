// run_plan on the CPU: a network, or a part of one, sample by sample.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <deque>
#include <optional>
#include <tuple>

#include "arena.h"
#include "compiled_plan.h"
#include "grouping.h"
#include "worker.h"

namespace dsn::cpu {

MemoryMap::MemoryMap(const CompiledPlan& compiled, int team_size) {
  const Plan& plan = compiled.plan;
  const int64_t streams = team_size == 1 ? 1 : static_cast<int64_t>(compiled.plan.streams.size());
  place_buffers(compiled, team_size == 1);
  recurrent = std::exchange(sample, sample + round_up(2 * gate::kEmbedding, kAlign) * streams);
  auto reserve = [&](int64_t floats) { return std::exchange(shared, shared + round_up(floats, kAlign)); };
  int64_t tile_channels = 0;
  for (const BufferSpec& b : plan.buffers) {
    plane_stride = std::max(plane_stride, (b.tiles() + 4) * kTile);
    tile_channels = std::max(tile_channels, b.channels);
  }
  auto reserve_patches = [&](const BufferSpec& map, int64_t channels) {
    patches_stride = std::max(patches_stride, Patches(map, channels).floats(team_size) + kAlign);
  };
  auto reserve_transformed = [&](const BufferSpec& map, int64_t in, int64_t out) {
    const WinogradSize size(map, in, out);
    patch_stride = std::max(patch_stride, round_up(size.transformed + size.partial, kAlign) + kAlign);
  };
  for (const Instruction& in : plan.code) {
    if (in.op == Op::kStem) reserve_patches(plan.buffers[in.dst], in.in_channels);
    if (in.op == Op::kDenseBlock) {
      const BufferSpec& map = plan.buffers[in.dst];
      tile_channels = std::max(tile_channels, in.bottleneck);
      if (in.flags & kWinograd) {
        patches_stride = std::max(patches_stride, in.bottleneck * map.tiles() * kTile + kAlign);
        reserve_transformed(map, in.bottleneck, in.out_channels);
      } else {
        reserve_patches(map, in.bottleneck ? in.bottleneck : map.channels);
      }
    }
    if (in.op == Op::kTransition) {
      const int64_t guide = in.guide >= 0 ? plan.buffers[in.guide].channels : 0;
      tile_channels = std::max(tile_channels, in.in_channels + guide);
    }
    if (in.op == Op::kConv2d) {
      if (in.flags & kWinograd) {
        reserve_transformed(plan.buffers[in.dst], in.in_channels, in.out_channels);
      } else if (in.columns) {
        tile_channels = std::max(tile_channels, ceil_div(Patches::channels_read(in) * in.taps * kUnfoldedRow, kTile));
      } else if (in.taps == 9) {
        patch_stride = std::max(patch_stride, Patches::of(in, plan.buffers[in.dst], team_size).size + kAlign);
      }
      if (in.out_mask >= 0)  // rows end in room for a whole vector
        selected_stride =
            std::max(selected_stride,
                     Patches::channels_read(in) * in.taps * (round_up(in.out_channels, kAlign) + kAlign) + kAlign);
    }
    if (in.op == Op::kHead || in.op == Op::kPathHead)
      features_stride = std::max(features_stride, round_up(in.in_channels, kAlign));
  }
  patches = reserve(patches_stride * streams);
  features = reserve(features_stride * streams);
  patch = reserve(patch_stride * team_size);
  selected = reserve(selected_stride * team_size);
  scratch_stride = (tile_channels + 1) * kTile + 4 * plane_stride;
  scratch = reserve(scratch_stride * team_size);
}

void MemoryMap::place_buffers(const CompiledPlan& compiled, bool streams_take_turns) {
  const Plan& plan = compiled.plan;
  struct Use {
    int64_t floats = 0;
    int first = 0, last = -1;  // instructions
  };
  std::vector<Use> uses;
  for (const BufferSpec& b : plan.buffers)
    uses.push_back({round_up(b.channels * (b.tiles() * (kTile + 1) + 1), kAlign)});
  for (int i = 0; i < static_cast<int>(plan.code.size()); ++i)
    for (int64_t b : {plan.code[i].src, plan.code[i].dst, plan.code[i].guide, plan.code[i].factor})
      if (b >= 0) {
        if (uses[b].last < 0) uses[b].first = i;
        uses[b].last = i;
      }
  auto together = [&](size_t a, size_t b) {
    const bool in_turn = streams_take_turns || compiled.plan.stream_of[a] == compiled.plan.stream_of[b];
    return !in_turn || (uses[a].first <= uses[b].last && uses[b].first <= uses[a].last);
  };
  for (size_t b = 0; b < uses.size(); ++b) {  // the lowest place that is free all the while
    int64_t place = 0;
    for (bool moved = true; std::exchange(moved, false);)
      for (size_t a = 0; a < b; ++a)
        if (together(a, b) && buffers[a] < place + uses[b].floats && place < buffers[a] + uses[a].floats) {
          place = buffers[a] + uses[a].floats;
          moved = true;
        }
    buffers.push_back(place);
    sample = std::max(sample, place + uses[b].floats);
  }
}

int64_t phase_count(const CompiledPlan& compiled, int stream) {
  int64_t phases = 0;
  for (int i : compiled.plan.streams[stream]) {
    const Instruction& in = compiled.plan.code[i];
    phases += has(in.op, kLayered) ? 1 + 2 * in.layers : 2;
  }
  return phases;
}

void Worker::run() {
  const int streams = static_cast<int>(compiled.plan.streams.size());
  for (int i = 0; i < streams; ++i) walk((team().rank() + i) % streams);
  count_macs();
}

void Worker::walk(int stream) {
  if (walked_[stream]) return;
  walked_[stream] = true;
  teams_[stream].join();
  for (int i : compiled.plan.streams[stream]) {
    const Instruction& in = plan.code[i];
    if (in.guide >= 0) walk(compiled.plan.stream_of[in.guide]);  // help it to its end rather than wait
    stream_ = stream;
    step(in);
  }
}

void Worker::step(const Instruction& in) {
  const Span span(*this, in);
  switch (in.op) {
#define DSN_OP(id, name, traits) \
  case Op::id:                   \
    return run_##name(*this, in);
#include "../plan/instructions.def"
  }
}

namespace {

using torch::stable::Tensor;

constexpr const char* kOp = "run_plan";

struct Outputs {
  Tensor logits, map, gates, scores, macs, spans;
};

struct Batch {
  const CompiledPlan& compiled;
  const Plan& plan;
  const float* weights;
  int64_t size;
  std::vector<std::atomic<int64_t>> macs;
  Sample first;  // pointers of sample 0
  int64_t image_stride, map_stride;
  int64_t* spans;  // [size, threads, steps, kSpanFields], or null
  int threads;
  std::vector<int64_t> order;  // in which samples are taken; empty: as they come
  int group = 1;               // samples that a thread works on at a time

  // The i-th that is taken.
  Sample sample(int64_t i, int thread) {
    if (!order.empty()) i = order[static_cast<size_t>(i)];
    Sample s = first;
    s.image += i * image_stride;
    if (s.forced) s.forced += i * plan.gates;
    s.taken += i * plan.gates;
    s.score += i * plan.gates;
    s.logits += i * plan.logits;
    s.map += i * map_stride;
    s.macs = &macs[i];
    s.spans = spans ? spans + (i * threads + thread) * compiled.steps * kSpanFields : nullptr;
    return s;
  }
};

// Several samples, a layer at a time: its weights are read once for all of them.
void run_group(Batch& batch, const MemoryMap& memory, float* arena, int thread, int64_t first, int count) {
  float* shared = arena + count * memory.sample;
  Selection selection;
  std::vector<Worker> workers;
  for (int i = 0; i < count; ++i)
    workers.emplace_back(batch.compiled, memory, batch.weights, arena + i * memory.sample, shared, selection,
                         batch.sample(first + i, thread));
  for (const Instruction& in : batch.plan.code) {
    if (in.op == Op::kDenseBlock && !batch.spans) {
      run_dense_block(workers.data(), count, in);
      continue;
    }
    for (Worker& worker : workers) worker.step(in);  // dense blocks one after another where each is timed
  }
  for (const Worker& worker : workers) worker.count_macs();
}

// Samples go to a thread one at a time, or a few; the last, and what is left over from whole rounds, are shared by the
// threads that have nothing else to do: each begins with a branch of its own, which fits its cache, and helps the
// others when done. Samples differ in what they skip, so without that the slowest thread would finish alone.
void run_batch(Batch& batch) {
  const int threads = batch.threads;
  const int64_t left_over = batch.size % threads;
  const int64_t shared = threads == 1 ? 0 : left_over ? left_over : 1;
  const int64_t singles = batch.size - shared;
  const MemoryMap alone(batch.compiled, 1), together(batch.compiled, threads);
  if (singles > 1) {
    double alike = 1;
    if (batch.compiled.plan.needs_masks) {  // all gates are known by now
      ByPattern sorted(batch.first.taken, batch.size, batch.plan.gates);
      alike = static_cast<double>(batch.size) / static_cast<double>(sorted.patterns);
      batch.order = std::move(sorted.order);
    }
    batch.group = group_size(batch.compiled, alone.sample * 4, alike);
  }
  const int group = batch.group;

  std::vector<std::unique_ptr<Arena>> arenas;
  for (int t = 0; t < (singles ? threads : 1); ++t)
    arenas.push_back(std::make_unique<Arena>(std::max(alone.size(group), shared ? together.size(1) : 0)));
  std::vector<std::deque<TeamState>> states(static_cast<size_t>(shared));  // of each sample, of each stream
  for (std::deque<TeamState>& streams : states)
    for (int s = 0; s < static_cast<int>(batch.compiled.plan.streams.size()); ++s)
      streams.emplace_back(phase_count(batch.compiled, s));
  std::atomic<float*> team_arena{singles ? nullptr : arenas[0]->data()};
  std::atomic<int64_t> next{0};

  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    const int rank = static_cast<int>(begin);
    const bool only_thread = end - begin == threads;  // nested in another parallel region
    float* arena = arenas[singles ? rank : 0]->data();
    const int64_t mine = only_thread ? batch.size : singles;
    for (;;) {
      int64_t first = next.load(), count = 0;
      do {  // smaller groups towards the end
        if (first >= mine) break;
        count = std::clamp<int64_t>((mine - first) / threads, 1, group);
      } while (!next.compare_exchange_weak(first, first + count));
      if (first >= mine) break;
      run_group(batch, alone, arena, rank, first, static_cast<int>(count));
    }
    if (only_thread) return;
    float* none = nullptr;  // the first thread without a sample of its own lends the team its memory
    team_arena.compare_exchange_strong(none, arena);
    for (int64_t i = 0; i < shared; ++i) {
      Selection selection;
      std::vector<Team> teams;
      for (TeamState& state : states[static_cast<size_t>(i)]) teams.emplace_back(rank, threads, state);
      float* own = team_arena.load();
      Worker(batch.compiled, together, batch.weights, own, own + together.sample, selection,
             batch.sample(singles + i, rank), std::move(teams))
          .run();
    }
  });
}

// Straight from the C shim: a fifth of what the dispatcher's empty costs, six times a call.
Tensor empty(const std::vector<int64_t>& sizes, int32_t dtype) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  AtenTensorHandle handle;
  check(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype,
                                 aoti_torch_device_type_cpu(), 0, &handle) == AOTI_TORCH_SUCCESS,
        "dsn: out of memory for an output");
  return Tensor(handle);
}

// Fills `out`, of a batch that is not empty; its spans are empty unless the run is timed.
void run(const CompiledPlan& compiled, const BufferSpec& input, const Tensor& image, const Tensor& weights,
         const Tensor& thresholds, const std::optional<Tensor>& forced, int threads, Outputs& out) {
  const Plan& plan = compiled.plan;
  const int64_t batch = image.size(0);
  const Tensor x = torch::stable::contiguous(image), w = torch::stable::contiguous(weights);
  const Tensor limits = torch::stable::contiguous(thresholds);
  const float* threshold = limits.const_data_ptr<float>();
  for (int64_t i = 0; i < plan.gates; ++i)
    check(threshold[i] >= 0 && threshold[i] <= 1, "run_plan: thresholds must lie in [0, 1], got ", threshold[i]);
  std::optional<Tensor> f;
  if (forced) {
    f = torch::stable::contiguous(*forced);
    const uint8_t* values = f->const_data_ptr<uint8_t>();
    const int64_t count = f->numel();
    uint8_t most = 0;  // no branch in the loop: a vector at a time
    for (int64_t i = 0; i < count; ++i) most = std::max(most, values[i]);
    check(most <= 1, "run_plan: forced_gates must hold 0 (skip) or 1 (run), got ", static_cast<int>(most));
    // Gates that no instruction decides, such as filter masks, are inputs.
    std::copy_n(values, count, out.gates.mutable_data_ptr<uint8_t>());
  }
  if (!f) std::fill_n(out.gates.mutable_data_ptr<uint8_t>(), out.gates.numel(), uint8_t{0});
  check(f || !plan.needs_masks, "run_plan: forced_gates must say which filters run, got none");
  std::fill_n(out.scores.mutable_data_ptr<float>(), out.scores.numel(), 0.f);

  int64_t* spans = nullptr;
  if (out.spans.numel() > 0) {
    spans = out.spans.mutable_data_ptr<int64_t>();
    std::fill_n(spans, out.spans.numel(), int64_t{0});
  }
  Batch b{compiled,
          plan,
          w.const_data_ptr<float>(),
          batch,
          std::vector<std::atomic<int64_t>>(static_cast<size_t>(batch)),
          {x.const_data_ptr<float>(), f ? f->const_data_ptr<uint8_t>() : nullptr, threshold,
           out.gates.mutable_data_ptr<uint8_t>(), out.scores.mutable_data_ptr<float>(),
           out.logits.mutable_data_ptr<float>(), out.map.mutable_data_ptr<float>(), nullptr, nullptr},
          input.channels * input.pixels(),
          plan.map.channels * plan.map.pixels(),
          spans,
          threads,
          {}};
  run_batch(b);
  int64_t* macs = out.macs.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < batch; ++i) macs[i] = b.macs[i].load();
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> run_plan_cpu(
    const Tensor& image, const Tensor& weights, const Tensor& thresholds, const std::optional<Tensor>& forced,
    const std::optional<Tensor>& count, const Tensor& plan_words, int64_t gates, int64_t logits,
    const std::vector<int64_t>& map, int64_t element, bool timed) {
  check(!count, "run_plan: count is for a GPU; on the CPU every sample is real");
  check(element == 0, "run_plan: element must be 0, float32, on the CPU, got ", element);
  check(map.size() == 3, "run_plan: map must have channels, height and width");
  check_tensor(kOp, "image", image, ScalarType::Float, {-1, -1, -1, -1});
  check_tensor(kOp, "weights", weights, ScalarType::Float, {-1});
  check_tensor(kOp, "plan", plan_words, ScalarType::Long, {-1});
  const BufferSpec input{image.size(1), image.size(2), image.size(3)}, output{map[0], map[1], map[2]};
  const Tensor words = torch::stable::contiguous(plan_words);
  const auto shared = CompiledPlan::get(kOp, words.const_data_ptr<int64_t>(), words.numel(), input, weights.numel());
  const CompiledPlan& compiled = *shared;
  const Plan& plan = compiled.plan;
  plan.check_outputs(kOp, gates, logits, output);
  const int64_t batch = image.size(0);
  check_tensor(kOp, "thresholds", thresholds, ScalarType::Float, {plan.gates});
  if (forced) check_tensor(kOp, "forced_gates", *forced, ScalarType::Byte, {batch, plan.gates});

  const int32_t float32 = aoti_torch_dtype_float32();
  const int threads = std::min<int>(static_cast<int>(torch::stable::get_num_threads()), Team::kMaxSize);
  Outputs out{empty({batch, plan.logits}, float32),
              empty({batch, output.channels, output.height, output.width}, float32),
              empty({batch, plan.gates}, aoti_torch_dtype_uint8()),
              empty({batch, plan.gates}, float32),
              empty({batch}, aoti_torch_dtype_int64()),
              timed ? empty({batch, threads, compiled.steps, kSpanFields}, aoti_torch_dtype_int64())
                    : empty({0}, aoti_torch_dtype_int64())};
  if (batch > 0) run(compiled, input, image, weights, thresholds, forced, threads, out);
  return {out.logits, out.map, out.gates, out.scores, out.macs, out.spans};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dsn, CPU, m) { m.impl("run_plan", TORCH_BOX(&run_plan_cpu)); }

}  // namespace dsn::cpu
