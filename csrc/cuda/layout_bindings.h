// The GPU kernels' layouts for the Python code that packs.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "cuda/layout.h"
#include "cuda/machine.h"

namespace dsn::cuda {

// [(name, offset, shape, wide)], size; bytes
inline pybind11::tuple describe(const PackedLayout& layout) {
  pybind11::list fields;
  for (int i = 0; i < layout.count; ++i) {
    const PackedField& f = layout.fields[i];
    pybind11::list shape;
    for (int d = 0; d < f.shape.dims; ++d) shape.append(f.shape.sizes[d]);
    fields.append(pybind11::make_tuple(f.name, f.offset, shape, f.wide));
  }
  return pybind11::make_tuple(fields, layout.size);
}

// An instruction with these fields, by name.
inline Instruction instruction_of(const std::map<std::string, int64_t>& fields) {
  Instruction in;
#define DSN_FIELD(type, name, initial, description) \
  if (const auto found = fields.find(#name); found != fields.end()) in.name = static_cast<type>(found->second);
#include "plan/instructions.def"
  return in;
}

inline void bind_layouts(pybind11::module_& parent) {
  namespace py = pybind11;
  py::module_ m = parent.def_submodule("cuda", "Layouts of the GPU kernels' weights.");
  m.attr("GROUP") = kGroup;
  m.attr("COLUMNS") = columns_of(1);
  m.attr("STEP") = kStep;
  m.attr("ELEMENTS") = py::dict(py::arg("float32") = static_cast<int>(Element::kFloat),
                                py::arg("float16") = static_cast<int>(Element::kHalf),
                                py::arg("bfloat16") = static_cast<int>(Element::kBfloat16));
  const Machine machine;  // the one that is played where there is none
  m.attr("MACHINE") =
      py::dict(py::arg("multiprocessors") = machine.multiprocessors, py::arg("shared_bytes") = machine.shared_bytes,
               py::arg("reserved_bytes") = kReservedBytes, py::arg("clock") = machine.clock,
               py::arg("l2_rate") = machine.l2_rate, py::arg("shared_rate") = kSharedRate,
               py::arg("l2_rate_alone") = kL2RateAlone, py::arg("trip_clocks") = kTripClocks,
               py::arg("product_clocks") = product_clocks(false), py::arg("step_clocks") = kStepClocks,
               py::arg("cluster_clocks") = kClusterClocks, py::arg("launch_seconds") = kLaunchSeconds);
  m.def("gates_layout", [](int64_t first, int64_t slices, int64_t width, int64_t layers) {
    return describe(packed_gates::layout({first, slices, width}, layers));
  });
  m.def("layer_layout", [](int64_t first, int64_t slices, int64_t width, int64_t growth, int64_t bottleneck,
                           int64_t merge, int64_t element) {
    return describe(packed_layer::layout({first, slices, width}, growth, bottleneck, static_cast<Merge>(merge),
                                         static_cast<Element>(element)));
  });
  m.def("transition_layout", [](int64_t first, int64_t slices, int64_t width, int64_t guide_first, int64_t guide_slices,
                                int64_t guide_width, int64_t out, int64_t element) {
    return describe(packed_transition::layout({first, slices, width}, {guide_first, guide_slices, guide_width}, out,
                                              static_cast<Element>(element)));
  });
  m.def("head_layout", [](int64_t first, int64_t slices, int64_t width, int64_t classes, bool live) {
    return describe(packed_head::layout({first, slices, width}, classes, live));
  });
  m.def("path_head_layout", [](int64_t first, int64_t slices, int64_t width, int64_t classes, int64_t gates) {
    return describe(packed_path_head::layout({first, slices, width}, classes, gates));
  });
  m.def("stem_layout", [](int64_t in, int64_t out, int64_t element) {
    return describe(packed_stem::layout(in, out, static_cast<Element>(element)));
  });
  m.def("conv2d_layout", [](int64_t src_offset, int64_t in, int64_t out, int64_t taps, int64_t products, bool normalise,
                            bool chosen, bool constants, int64_t element) {
    return describe(packed_conv2d::layout(src_offset, in, out, taps, products, normalise, chosen, constants,
                                          static_cast<Element>(element)));
  });
  m.def("listed_layout", [](const std::map<std::string, int64_t>& fields) {
    return describe(wide_layout(listed::layout(instruction_of(fields))));
  });
  m.def("recurrence_layout", [] { return describe(wide_layout(recurrence::layout())); });
}

}  // namespace dsn::cuda
