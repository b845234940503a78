#include "cuda/group_by_pattern.cuh"
#include "simt/bindings.h"

namespace dsn::simt::bindings {

void group_by_pattern(Buffer gates, Buffer first, Buffer order, Buffer group, Buffer offsets, int batch, int layers) {
  check(cuda::launch_group_by_pattern({gates.data<uint8_t>(), first.data<int32_t>(), order.data<int64_t>(),
                                       group.data<int64_t>(), offsets.data<int64_t>(), batch, layers},
                                      nullptr));
}
DSN_SIMT_BIND(group_by_pattern);

}  // namespace dsn::simt::bindings
