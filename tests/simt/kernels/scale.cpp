#include "kernels/scale.cuh"

#include "simt/bindings.h"

namespace dsn::simt::bindings {

void scale(Buffer out, Buffer in, float factor) {
  check(cuda::launch_scale({out.data<float>(), in.data<float>(), factor, static_cast<int>(in.size<float>())}, nullptr));
}
DSN_SIMT_BIND(scale);

}  // namespace dsn::simt::bindings
