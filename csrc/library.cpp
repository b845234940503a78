// The operator's schema, the module's initialisation, and what was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include "common/layout.h"
#include "cpu/grouping.h"
#include "cpu/kernels.h"
#include "cuda/layout_bindings.h"
#ifdef DSN_WITH_CUDA
#include "cuda/device_info.h"
#endif

namespace py = pybind11;

STABLE_TORCH_LIBRARY(dsn, m) {
  m.def(
      "run_plan(Tensor image, Tensor weights, Tensor thresholds, Tensor? forced_gates, Tensor? count, Tensor plan,"
      " int gates, int logits, int[] map, int element, bool timed)"
      " -> (Tensor logits, Tensor map, Tensor gates, Tensor scores, Tensor macs, Tensor spans)");
}

namespace {

using dsn::Layout;
using dsn::Merge;

// [(name, offset, shape)], size
py::tuple describe(const Layout& layout) {
  py::list fields;
  for (int i = 0; i < layout.count; ++i) {
    const dsn::Field& f = layout.fields[i];
    py::list shape;
    for (int d = 0; d < f.shape.dims; ++d) shape.append(f.shape.sizes[d]);
    fields.append(py::make_tuple(f.name, f.offset, shape));
  }
  return py::make_tuple(fields, layout.size);
}

// The lists of plan/instructions.def: names to numbers, and (name, default) of each field in order.
void bind_plan(py::module_& m) {
  py::dict ops, flags, activations, gates, merges, regions;
  py::list fields;
#define DSN_OP(id, name, traits) ops[#name] = static_cast<int64_t>(dsn::Op::id);
#define DSN_FIELD(type, name, initial, description) fields.append(py::make_tuple(#name, initial));
#define DSN_FLAG(id, name, bit, description) flags[#name] = bit;
#define DSN_ACTIVATION(id, name) activations[#name] = static_cast<int64_t>(dsn::Activation::id);
#define DSN_GATE(id, name) gates[#name] = static_cast<int64_t>(dsn::GateKind::id);
#define DSN_MERGE(id, name) merges[#name] = static_cast<int64_t>(Merge::id);
#define DSN_REGION(id, name, description) regions[#name] = static_cast<int64_t>(dsn::RegionKind::id);
#include "plan/instructions.def"
  m.attr("OPS") = ops;
  m.attr("FLAGS") = flags;
  m.attr("ACTIVATIONS") = activations;
  m.attr("GATES") = gates;
  m.attr("MERGES") = merges;
  m.attr("REGIONS") = regions;
  m.attr("INSTRUCTION_FIELDS") = fields;
  m.attr("PLAN_FORMAT") = dsn::kPlanFormat;
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = __VERSION__;
  info["torch_target"] = "2.11";
#ifdef DSN_BUILD_TORCH
  info["torch_build"] = DSN_BUILD_TORCH;
#endif
#ifdef DSN_WITH_CUDA
  info["cuda"] = true;
  info["cuda_archs"] = DSN_CUDA_ARCHS;
#else
  info["cuda"] = false;
  info["cuda_archs"] = "";
#endif
  info["isa"] = dsn::cpu::kernels().name;
  info["bfloat16"] = dsn::cpu::bfloat16_kernels() ? dsn::cpu::bfloat16_kernels()->name : "";
#ifdef NDEBUG
  info["debug"] = false;
#else
  info["debug"] = true;
#endif
  return info;
}

// Of each device the CUDA runtime sees: a line of facts, and whether this build's code runs there.
py::list cuda_devices() {
  py::list lines;
#ifdef DSN_WITH_CUDA
  for (const dsn::cuda::DeviceInfo& d : dsn::cuda::devices()) {
    std::string line = d.name + ", sm_" + std::to_string(d.major) + std::to_string(d.minor) + ", " +
                       std::to_string(d.memory_bytes >> 30) + " GiB: ";
    lines.append(line + (d.error.empty() ? "runs sm_" + std::to_string(d.kernel_arch / 10) + " code" : d.error));
  }
#endif
  return lines;
}

// Why there is no device; empty if there is one or nothing of CUDA was built.
std::string cuda_error() {
#ifdef DSN_WITH_CUDA
  return dsn::cuda::runtime().error;
#else
  return "";
#endif
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Operators of dsn_kernels and the layouts of their packed weights.";
  // A value that the user gave and that we do not know, such as DSN_ISA's.
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      std::rethrow_exception(thrown);
    } catch (const std::invalid_argument& error) {
      py::set_error(py::module_::import("dsn_models.errors").attr("UserError"), error.what());
    }
  });
  m.def("build_info", &build_info, "What was compiled, and the instruction set chosen for this machine.");
  m.def("cuda_devices", &cuda_devices, "One line per CUDA device; initialises the driver.");
  m.def("cuda_error", &cuda_error, "Why no CUDA device is usable, or nothing.");
  m.attr("TILE") = dsn::kTile;
  m.attr("WINOGRAD_ROWS") = dsn::kWinogradRows;
  bind_plan(m);
  dsn::cuda::bind_layouts(m);
  m.def(
      "measure_costs",
      [] {
        const dsn::Costs c = dsn::cpu::measure_costs();
        return py::dict(py::arg("fetch") = c.fetch, py::arg("pack") = c.pack, py::arg("reload") = c.reload);
      },
      "Seconds per byte of what grouping samples by their masks saves and costs, measured now.");
  m.def("row_block", &dsn::row_block, py::arg("out_channels"), py::arg("odd") = false);
  m.def(
      "dot_bfloat16", [](float sum, uint32_t a, uint32_t b) { return dsn::cpu::bfloat16_kernels()->dot(sum, a, b); },
      py::arg("sum"), py::arg("a"), py::arg("b"),
      "sum + the products of two pairs of bfloat16, as the convolutions take it; where build_info()['bfloat16'].");
  m.def(
      "dense_layer_layout",
      [](int64_t in, int64_t growth, int64_t bottleneck, int64_t skippable, int64_t merge, bool bfloat16,
         bool winograd) {
        return describe(
            dsn::dense_layer::layout(in, growth, bottleneck, skippable, static_cast<Merge>(merge), bfloat16, winograd));
      },
      py::arg("in_channels"), py::arg("growth"), py::arg("bottleneck"), py::arg("skippable"), py::arg("merge"),
      py::arg("bfloat16") = false, py::arg("winograd") = false);
  m.def(
      "transition_layout",
      [](int64_t in, int64_t out, int64_t slices) { return describe(dsn::transition::layout(in, out, slices)); },
      py::arg("in_channels"), py::arg("out_channels"), py::arg("slices"));
  m.def(
      "head_layout",
      [](int64_t in, int64_t classes, int64_t slices) { return describe(dsn::head::layout(in, classes, slices)); },
      py::arg("in_channels"), py::arg("classes"), py::arg("slices"));
  m.def(
      "stem_layout", [](int64_t in, int64_t out) { return describe(dsn::stem::layout(in, out)); },
      py::arg("in_channels"), py::arg("out_channels"));
  m.def(
      "conv2d_layout",
      [](int64_t in, int64_t out, int64_t taps, bool normalise, bool masked, bool winograd, int64_t slices,
         bool bfloat16, int64_t groups) {
        return describe(dsn::conv2d::layout(in, out, taps, normalise, masked, winograd, slices, bfloat16, groups));
      },
      py::arg("in_channels"), py::arg("out_channels"), py::arg("taps"), py::arg("normalise"), py::arg("masked"),
      py::arg("winograd") = false, py::arg("slices") = 0, py::arg("bfloat16") = false, py::arg("groups") = 1);
  m.def(
      "path_head_layout",
      [](int64_t in, int64_t classes, int64_t gates) { return describe(dsn::path_head::layout(in, classes, gates)); },
      py::arg("in_channels"), py::arg("classes"), py::arg("gates"));
  m.def(
      "winograd_pays",
      [](int64_t in, int64_t out, int64_t height, int64_t width) {
        return dsn::winograd_pays(in, out, height, width) && std::string(dsn::cpu::kernels().name) != "generic";
      },
      py::arg("in_channels"), py::arg("out_channels"), py::arg("height"), py::arg("width"),
      "Whether Winograd's algorithm is the faster way for a 3x3 convolution, on this machine.");
  m.def(
      "listed_layout",
      [](const std::map<std::string, int64_t>& fields) {
        return describe(dsn::listed::layout(dsn::cuda::instruction_of(fields)));
      },
      py::arg("fields"), "Of an instruction's weights if instructions.def lists them, else of no fields.");
  m.def("recurrence_layout", [] { return describe(dsn::recurrence::layout()); });
}
