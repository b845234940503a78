#include "cuda/group_by_pattern.cuh"
#include "simt/bindings.h"

namespace dsn::simt::bindings {

// The two launches of a network that puts samples with equal masks side by side.
void group_by_pattern(Buffer gates, Buffer first, Buffer order, int batch, int layers) {
  const cuda::GroupParams p{gates.data<uint8_t>(), first.data<int32_t>(), order.data<int64_t>(), batch, layers};
  cuda::LaunchConfig config;
  config.grid = dim3(static_cast<unsigned>((batch + cuda::kThreads - 1) / cuda::kThreads));
  config.block = dim3(cuda::kThreads);
  check(cuda::launch<cuda::first_equal_kernel>(config, p));
  config.shared_bytes = cuda::kGroupBytes;
  check(cuda::launch<cuda::place_kernel>(config, p));
}
DSN_SIMT_BIND(group_by_pattern);

}  // namespace dsn::simt::bindings
