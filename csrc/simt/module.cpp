#include <cstring>

#include "simt/engine.h"
#include "simt/python.h"

namespace dsn::simt {
namespace {

std::vector<PythonBinder::Bind>& binders() {
  static std::vector<PythonBinder::Bind> all;
  return all;
}

py::dict counters_dict() {
  py::dict counts;
#define DSN_SIMT_ENTRY(name) counts[#name] = counters().name;
  DSN_SIMT_COUNTERS(DSN_SIMT_ENTRY)
#undef DSN_SIMT_ENTRY
  return counts;
}

const char* name_of(cudaError_t status) {
  switch (status) {
    case cudaErrorInvalidConfiguration:
      return "invalid configuration: grid, block or cluster size";
    case cudaErrorInvalidClusterSize:
      return "invalid cluster size: it must divide the grid";
    case cudaErrorInvalidValue:
      return "invalid value: more shared memory than a block may have";
    default:
      return "CUDA error";
  }
}

}  // namespace

PythonBinder::PythonBinder(Bind bind) { binders().push_back(bind); }

std::vector<Function>& functions() {
  static std::vector<Function> all;
  return all;
}

void check(cudaError_t status) {
  if (status != cudaSuccess) {
    throw Error(std::string(name_of(status)) + " (" + std::to_string(static_cast<int>(status)) + ")");
  }
}

Array::Array(py::object owner, const std::string& name, bool writable) : owner_(std::move(owner)) {
  if (py::hasattr(owner_, "data_ptr")) {
    if (!owner_.attr("is_contiguous")().cast<bool>() ||
        owner_.attr("device").attr("type").cast<std::string>() != "cpu") {
      throw py::value_error(name + ": expected a contiguous CPU tensor");
    }
    buffer_.address = reinterpret_cast<void*>(owner_.attr("data_ptr")().cast<uintptr_t>());
    buffer_.bytes = owner_.attr("numel")().cast<int64_t>() * owner_.attr("element_size")().cast<int64_t>();
  } else {
    const py::buffer_info info = py::buffer(owner_).request(writable);
    int64_t stride = info.itemsize;
    for (py::ssize_t d = info.ndim - 1; d >= 0; --d) {
      if (info.shape[d] > 1 && info.strides[d] != stride) throw py::value_error(name + ": expected a contiguous array");
      stride *= info.shape[d];
    }
    buffer_.address = info.ptr;
    buffer_.bytes = info.size * info.itemsize;
  }
  if (buffer_.bytes)
    regions().add(reinterpret_cast<uintptr_t>(buffer_.address), static_cast<size_t>(buffer_.bytes), name, writable);
}

Array::~Array() {
  if (buffer_.bytes) regions().remove(reinterpret_cast<uintptr_t>(buffer_.address));
}

namespace {

Argument to_argument(const py::handle& value) {
  if (value.is_none()) return Buffer{};
  if (py::isinstance<Array>(value)) return value.cast<const Array&>().buffer();
  if (py::isinstance<py::float_>(value)) return value.cast<double>();
  return value.cast<int64_t>();
}

void define(py::module_& m, const Function& function) {
  m.def(function.name.c_str(), [function](const py::args& args) -> py::object {
    if (args.size() != function.arguments) {
      throw py::type_error(function.name + " takes " + std::to_string(function.arguments) + " arguments, got " +
                           std::to_string(args.size()));
    }
    std::vector<Argument> arguments;
    for (const py::handle& value : args) arguments.push_back(to_argument(value));
    const double result = function.call(arguments);
    return result == result ? py::object(py::float_(result)) : py::none();
  });
}

}  // namespace

}  // namespace dsn::simt

PYBIND11_MODULE(dsn_simt, m) {
  using namespace dsn::simt;
  m.doc() = "Runs the CUDA kernels on the host; see csrc/simt/README.md.";
  // Local: two builds of this module may be loaded, and each raises its own.
  py::register_local_exception<Error>(m, "Error", PyExc_RuntimeError);
  py::class_<Array, std::shared_ptr<Array>>(m, "Array", py::module_local())
      .def_property_readonly("nbytes", &Array::size<>);
  m.def(
      "input", [](py::object owner, const std::string& name) { return std::make_shared<Array>(owner, name, false); },
      py::arg("array"), py::arg("name") = "input", "A buffer that kernels may read.");
  m.def(
      "output", [](py::object owner, const std::string& name) { return std::make_shared<Array>(owner, name, true); },
      py::arg("array"), py::arg("name") = "output", "A buffer that kernels may read and write.");
  m.def(
      "configure",
      [](uint64_t seed, int host_threads, bool check_races, int shared_limit) {
        options() = {seed, host_threads, check_races, shared_limit};
      },
      py::kw_only(), py::arg("seed") = Options().seed, py::arg("host_threads") = Options().host_threads,
      py::arg("check_races") = Options().check_races, py::arg("shared_limit") = Options().shared_limit,
      "Sets the order of threads and what is checked, for all launches from here on.");
  m.def("counters", &counters_dict, "What was counted since the last reset, by name.");
  m.def("reset_counters", [] { counters() = {}; });
  m.attr("sanitizer") = sanitizer();
  for (const Function& function : functions()) define(m, function);
  for (auto bind : binders()) bind(m);
}
