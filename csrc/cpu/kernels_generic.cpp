// Micro-kernels for any machine GCC or Clang has 128-bit vectors for.
#include "kernels.h"

namespace dsn::cpu {
namespace generic {
#define DSN_VECTOR_BYTES 16
#include "kernels_impl.h"
}  // namespace generic

const Kernels kGeneric = generic::table("generic");
}  // namespace dsn::cpu
