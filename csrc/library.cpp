// The operator's schema, the module's initialisation, and what was built.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include "common/layout.h"
#include "common/plan.h"
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
  m.attr("OPS") = py::dict(
      py::arg("load") = static_cast<int>(dsn::Op::kLoad), py::arg("stem") = static_cast<int>(dsn::Op::kStem),
      py::arg("dense_block") = static_cast<int>(dsn::Op::kDenseBlock),
      py::arg("transition") = static_cast<int>(dsn::Op::kTransition),
      py::arg("head") = static_cast<int>(dsn::Op::kHead), py::arg("store") = static_cast<int>(dsn::Op::kStore),
      py::arg("conv2d") = static_cast<int>(dsn::Op::kConv2d),
      py::arg("subsample") = static_cast<int>(dsn::Op::kSubsample),
      py::arg("max_pool") = static_cast<int>(dsn::Op::kMaxPool),
      py::arg("avg_pool") = static_cast<int>(dsn::Op::kAvgPool),
      py::arg("pool_sums") = static_cast<int>(dsn::Op::kPoolSums), py::arg("add") = static_cast<int>(dsn::Op::kAdd),
      py::arg("gate") = static_cast<int>(dsn::Op::kGate), py::arg("linear") = static_cast<int>(dsn::Op::kLinear),
      py::arg("tanh") = static_cast<int>(dsn::Op::kTanh), py::arg("path_head") = static_cast<int>(dsn::Op::kPathHead));
  m.attr("FLAGS") = py::dict(
      py::arg("normalise") = static_cast<int>(dsn::kNormalise), py::arg("relu") = static_cast<int>(dsn::kRelu),
      py::arg("accumulate") = static_cast<int>(dsn::kAccumulate), py::arg("pool") = static_cast<int>(dsn::kPool),
      py::arg("winograd") = static_cast<int>(dsn::kWinograd), py::arg("live") = static_cast<int>(dsn::kLive),
      py::arg("means") = static_cast<int>(dsn::kMeans), py::arg("bfloat16") = static_cast<int>(dsn::kBfloat16));
  m.attr("GATES") = py::dict(py::arg("none") = static_cast<int>(dsn::GateKind::kNone),
                             py::arg("hard") = static_cast<int>(dsn::GateKind::kHard),
                             py::arg("soft") = static_cast<int>(dsn::GateKind::kSoft),
                             py::arg("recurrent") = static_cast<int>(dsn::GateKind::kRecurrent));
  m.attr("MERGES") =
      py::dict(py::arg("concat") = static_cast<int>(Merge::kConcat), py::arg("add") = static_cast<int>(Merge::kAdd));
  dsn::cuda::bind_layouts(m);
  m.def(
      "measure_costs",
      [] {
        const dsn::cpu::Costs c = dsn::cpu::measure_costs();
        return py::dict(py::arg("fetch") = c.fetch, py::arg("pack") = c.pack, py::arg("reload") = c.reload);
      },
      "Seconds per byte of what grouping samples by their masks saves and costs, measured now.");
  m.def(
      "set_costs", [](double fetch, double pack, double reload) { dsn::cpu::set_costs({fetch, pack, reload}); },
      py::arg("fetch"), py::arg("pack"), py::arg("reload"));
  m.def("row_block", &dsn::row_block, py::arg("out_channels"), py::arg("odd") = false);
  m.def(
      "dot_bfloat16", [](float sum, uint32_t a, uint32_t b) { return dsn::cpu::bfloat16_kernels()->dot(sum, a, b); },
      py::arg("sum"), py::arg("a"), py::arg("b"),
      "sum + the products of two pairs of bfloat16, as the convolutions take it; where build_info()['bfloat16'].");
  m.def(
      "dense_layer_layout",
      [](int64_t in, int64_t growth, int64_t bottleneck, int64_t skippable, int64_t merge, bool bfloat16) {
        return describe(
            dsn::dense_layer::layout(in, growth, bottleneck, skippable, static_cast<Merge>(merge), bfloat16));
      },
      py::arg("in_channels"), py::arg("growth"), py::arg("bottleneck"), py::arg("skippable"), py::arg("merge"),
      py::arg("bfloat16") = false);
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
         bool bfloat16) {
        return describe(dsn::conv2d::layout(in, out, taps, normalise, masked, winograd, slices, bfloat16));
      },
      py::arg("in_channels"), py::arg("out_channels"), py::arg("taps"), py::arg("normalise"), py::arg("masked"),
      py::arg("winograd") = false, py::arg("slices") = 0, py::arg("bfloat16") = false);
  m.def(
      "path_head_layout",
      [](int64_t in, int64_t classes, int64_t gates) { return describe(dsn::path_head::layout(in, classes, gates)); },
      py::arg("in_channels"), py::arg("classes"), py::arg("gates"));
  m.def(
      "winograd_pays",
      [](int64_t in, int64_t out, int64_t height, int64_t width) {
        return dsn::winograd_pays(in, out, height, width) && std::string(dsn::cpu::kernels().name) == "avx512";
      },
      py::arg("in_channels"), py::arg("out_channels"), py::arg("height"), py::arg("width"),
      "Whether Winograd's algorithm is the faster way for a 3x3 convolution, on this machine.");
  m.def(
      "gate_layout", [](int64_t in, bool recurrent) { return describe(dsn::gate::layout(in, recurrent)); },
      py::arg("in_channels"), py::arg("recurrent"));
  m.def("recurrence_layout", [] { return describe(dsn::recurrence::layout()); });
  m.def(
      "linear_layout", [](int64_t in, int64_t out) { return describe(dsn::linear::layout(in, out)); },
      py::arg("in_channels"), py::arg("out_channels"));
}
