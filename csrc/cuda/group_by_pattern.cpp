// group_by_pattern on a GPU.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "cuda/runtime.h"
#include "cuda/torch_device.h"

namespace dsn::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> group_by_pattern_cuda(const Tensor& gates) {
  constexpr const char* kOp = "group_by_pattern";
  const int device = gates.get_device_index();
  check_gpu_tensor(kOp, "gates", gates, device, ScalarType::Byte, {-1, -1});
  const int64_t batch = gates.size(0);
  check(batch < (int64_t{1} << 20), kOp, ": a batch of ", batch, " is too large; split it");
  const torch::stable::accelerator::DeviceGuard guard(device);
  auto output = [&](int64_t size, int32_t dtype) { return empty(kOp, {size}, dtype, device, "an output"); };
  const int32_t int64 = aoti_torch_dtype_int64();
  const Tensor first = output(batch, aoti_torch_dtype_int32());
  std::tuple<Tensor, Tensor, Tensor> out{output(batch, int64), output(batch, int64), output(batch + 1, int64)};
  auto* offsets = static_cast<int64_t*>(std::get<2>(out).data_ptr());
  CUstream_st* stream = current_stream(kOp, device);
  const Tensor g = torch::stable::contiguous(gates);
  const std::string error =
      batch == 0 ? zero_memory(offsets, sizeof(int64_t), stream)
                 : group_by_pattern(static_cast<const uint8_t*>(g.data_ptr()), static_cast<int32_t*>(first.data_ptr()),
                                    static_cast<int64_t*>(std::get<0>(out).data_ptr()),
                                    static_cast<int64_t*>(std::get<1>(out).data_ptr()), offsets,
                                    static_cast<int32_t>(batch), static_cast<int32_t>(gates.size(1)), stream);
  check(error.empty(), kOp, ": CUDA error on cuda:", device, ": ", error);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(dsn, CUDA, m) { m.impl("group_by_pattern", TORCH_BOX(&group_by_pattern_cuda)); }

}  // namespace dsn::cuda
