// Micro-kernels for any machine GCC or Clang has 128-bit vectors for.
#include "kernels.h"

namespace dsn::cpu {
namespace generic {
#define DSN_VECTOR_BYTES 16
#include "kernels_impl.h"
#include "winograd_impl.h"
}  // namespace generic

const Kernels kGeneric = {"generic",
                          generic::conv_tile<1>,
                          generic::conv_tile<9>,
                          generic::conv_tile<9, 2>,
                          generic::winograd3x3,
                          generic::normalise,
                          generic::gather,
                          generic::pick,
                          generic::select,
                          generic::normalised_sum,
                          generic::normalise_pool,
                          generic::bilinear,
                          generic::copy_rows,
                          generic::zero_rows,
                          generic::dot};
}  // namespace dsn::cpu
