#include "kernels/scale.cuh"

#include "simt/bindings.h"

namespace dsn::simt {

DSN_SIMT_BINDINGS(scale) {
  m.def("scale", [](const Array& out, const Array& in, float factor) {
    check(cuda::launch_scale({out.data<float>(), in.data<float>(), factor, static_cast<int>(in.size<float>())}, nullptr));
  });
}

}  // namespace dsn::simt
