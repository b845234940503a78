// Argument checks: the message names operator and argument, what was expected and what was given.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <string>
#include <vector>

#include "check.h"

namespace dsn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_of(const Tensor& t) {
  std::ostringstream out;
  out << "[";
  for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
  out << "]";
  return out.str();
}

// `shape` entries of -1 match any size.
inline void check_type_and_shape(const char* op, const char* name, const Tensor& t, ScalarType dtype,
                                 const std::vector<int64_t>& shape) {
  check(t.scalar_type() == dtype, op, ": ", name, " must be ", torch::headeronly::toString(dtype), ", got ",
        torch::headeronly::toString(t.scalar_type()));
  bool fits = t.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; fits && i < shape.size(); ++i) fits = shape[i] < 0 || t.size(static_cast<int64_t>(i)) == shape[i];
  if (fits) return;
  std::ostringstream expected;
  for (size_t i = 0; i < shape.size(); ++i)
    expected << (i ? ", " : "") << (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  check(false, op, ": ", name, " must have shape [", expected.str(), "], got ", shape_of(t));
}

inline void check_tensor(const char* op, const char* name, const Tensor& t, ScalarType dtype,
                         const std::vector<int64_t>& shape) {
  check(t.is_cpu(), op, ": ", name, " must be on the CPU; move it or the model to one device");
  check_type_and_shape(op, name, t, dtype, shape);
}

}  // namespace dsn
