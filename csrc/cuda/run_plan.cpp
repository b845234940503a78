// run_plan: a plan on a GPU, on the stable ABI. Nothing here waits for the device, so a graph can capture it.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>

#include "common/checks.h"
#include "cuda/runtime.h"
#include "cuda/torch_device.h"

namespace dsn::cuda {
namespace {

// A plan and how it is run by one device in batches of one size.
struct Scheduled {
  Scheduled(const int64_t* words, int64_t count, Element element, int64_t batch, const Machine& machine)
      : plan("run_plan", words, count), schedule("run_plan", plan, element, batch, machine) {}

  Plan plan;
  Schedule schedule;
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> run_plan_cuda(
    const Tensor& image, const Tensor& weights, const Tensor& thresholds, const std::optional<Tensor>& forced,
    const std::optional<Tensor>& count, const Tensor& plan_words, int64_t gates, int64_t logits,
    const std::vector<int64_t>& map, int64_t element_code, bool timed) {
  check(!timed, "run_plan: timed is for the CPU; dsn bench times what runs on a GPU");
  check(image.is_cuda(), "run_plan: image must be on a GPU");
  check(image.dim() == 4, "run_plan: image must have shape [any, any, any, any], got ", shape_of(image));
  check(element_code >= 0 && element_code <= 2 && map.size() == 3, "run_plan: unknown element or map");
  const auto element = static_cast<Element>(element_code);
  const ScalarType own = element == Element::kFloat  ? ScalarType::Float
                         : element == Element::kHalf ? ScalarType::Half
                                                     : ScalarType::BFloat16;
  const bool is_float = image.scalar_type() == ScalarType::Float;
  check(is_float || image.scalar_type() == own, "run_plan: image must be Float or ", torch::headeronly::toString(own),
        ", got ", torch::headeronly::toString(image.scalar_type()));
  check(plan_words.is_cpu(), "run_plan: plan must be on the CPU");
  check_type_and_shape("run_plan", "plan", plan_words, ScalarType::Long, {-1});
  const int device = image.get_device_index();
  const int64_t batch = image.size(0);
  check(batch < (int64_t{1} << 22), "run_plan: a batch of ", batch, " is too large; split it");
  check_gpu_tensor("run_plan", "weights", weights, device, ScalarType::Byte, {-1});
  check_gpu_tensor("run_plan", "thresholds", thresholds, device, ScalarType::Float, {gates});
  if (forced) check_gpu_tensor("run_plan", "forced_gates", *forced, device, ScalarType::Byte, {batch, gates});
  if (count) check_gpu_tensor("run_plan", "count", *count, device, ScalarType::Int, {1});

  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor words = torch::stable::contiguous(plan_words);
  const auto* word = static_cast<const int64_t*>(words.data_ptr());
  Machine machine;
  const std::string refused = probe_device(device, element, &machine);
  check(refused.empty(), "run_plan: ", refused);
  static auto* cache = new MostRecent<Scheduled>;  // outlives every thread
  const int64_t samples = std::max<int64_t>(batch, 1);
  const auto scheduled = cache->get({element_code, samples, device}, word, words.numel(), [&] {
    return std::make_shared<const Scheduled>(word, words.numel(), element, samples, machine);
  });
  const Plan& plan = scheduled->plan;
  const Schedule& schedule = scheduled->schedule;
  plan.check_image("run_plan", {image.size(1), image.size(2), image.size(3)});
  plan.check_outputs("run_plan", gates, logits, {map[0], map[1], map[2]});

  const int32_t image_type = image.scalar_type() == ScalarType::Float  ? aoti_torch_dtype_float32()
                             : image.scalar_type() == ScalarType::Half ? aoti_torch_dtype_float16()
                                                                       : aoti_torch_dtype_bfloat16();
  auto output = [&](const std::vector<int64_t>& sizes, int32_t dtype) {
    return empty("run_plan", sizes, dtype, device, "an output");
  };
  const int32_t float32 = aoti_torch_dtype_float32();
  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> out{output({batch, plan.logits}, float32),
                                                                 output({batch, map[0], map[1], map[2]}, image_type),
                                                                 output({batch, plan.gates}, aoti_torch_dtype_uint8()),
                                                                 output({batch, plan.gates}, float32),
                                                                 output({batch}, aoti_torch_dtype_int64()),
                                                                 output({0}, aoti_torch_dtype_int64())};
  if (batch == 0) return out;

  check(forced || schedule.listed_first.empty(), "run_plan: forced_gates must say which filters run, got none");
  check(schedule.weight_bytes <= weights.numel(), "run_plan: weights hold ", weights.numel(), " bytes, the plan needs ",
        schedule.weight_bytes, "; pack them anew");
  const Tensor workspace = empty("run_plan", {schedule.workspace_bytes}, aoti_torch_dtype_uint8(), device,
                                 "the " + std::to_string(schedule.workspace_bytes >> 20) + " MiB that a batch of " +
                                     std::to_string(batch) + " works in");
  const Tensor x = torch::stable::contiguous(image), w = torch::stable::contiguous(weights);
  const Tensor t = torch::stable::contiguous(thresholds);
  const std::optional<Tensor> f = forced ? std::optional(torch::stable::contiguous(*forced)) : std::nullopt;

  NetworkCall call;
  call.image = x.data_ptr();
  call.image_is_float = is_float;
  call.weights = static_cast<const unsigned char*>(w.data_ptr());
  call.thresholds = static_cast<const float*>(t.data_ptr());
  call.forced = f ? static_cast<const uint8_t*>(f->data_ptr()) : nullptr;
  call.count = count ? static_cast<const int32_t*>(count->data_ptr()) : nullptr;
  call.logits = static_cast<float*>(std::get<0>(out).data_ptr());
  call.map = std::get<1>(out).data_ptr();
  call.taken = static_cast<uint8_t*>(std::get<2>(out).data_ptr());
  call.score = static_cast<float*>(std::get<3>(out).data_ptr());
  call.macs = static_cast<unsigned long long*>(std::get<4>(out).data_ptr());
  call.workspace = static_cast<unsigned char*>(workspace.data_ptr());
  call.batch = batch;
  CUstream_st* stream = current_stream("run_plan", device);
  std::string error = zero_memory(call.workspace, schedule.zero_bytes, stream);
  if (error.empty()) error = zero_memory(call.macs, batch * 8, stream);
  if (error.empty()) error = error_text(run_network(plan, schedule, element, call, *make_streams(device, stream)));
  check(error.empty(), "run_plan: CUDA error on cuda:", device, ": ", error);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dsn, CUDA, m) { m.impl("run_plan", TORCH_BOX(&run_plan_cuda)); }

}  // namespace dsn::cuda
