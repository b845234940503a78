#include "cuda/group_by_pattern.cuh"

#include "cuda/runtime.h"

namespace dsn::cuda {

std::string group_by_pattern(const uint8_t* gates, int32_t* first, int64_t* order, int64_t* group, int64_t* offsets,
                             int32_t batch, int32_t layers, CUstream_st* stream) {
  return error_text(launch_group_by_pattern({gates, first, order, group, offsets, batch, layers}, stream));
}

}  // namespace dsn::cuda
