#include "cuda/group_by_pattern.cuh"
#include "simt/bindings.h"

DSN_SIMT_BINDINGS(group_by_pattern) {
  using dsn::simt::Array;
  m.def("group_by_pattern",
        [](const Array& gates, const Array& first, const Array& order, const Array& group, const Array& offsets,
           int batch, int layers) {
          dsn::simt::check(dsn::cuda::launch_group_by_pattern(
              {gates.data<uint8_t>(), first.data<int32_t>(), order.data<int64_t>(), group.data<int64_t>(),
               offsets.data<int64_t>(), batch, layers},
              nullptr));
        });
}
