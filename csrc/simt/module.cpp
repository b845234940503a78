#include <cstring>

#include "simt/bindings.h"

namespace dsn::simt {
namespace {

std::vector<Binder::Function>& binders() {
  static std::vector<Binder::Function> all;
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

Binder::Binder(Function function) { binders().push_back(function); }

void check(cudaError_t status) {
  if (status != cudaSuccess) {
    throw Error(std::string(name_of(status)) + " (" + std::to_string(static_cast<int>(status)) + ")");
  }
}

Array::Array(py::object owner, const std::string& name, bool writable) : owner_(std::move(owner)) {
  if (py::hasattr(owner_, "data_ptr")) {
    if (!owner_.attr("is_contiguous")().cast<bool>() || owner_.attr("device").attr("type").cast<std::string>() != "cpu") {
      throw py::value_error(name + ": expected a contiguous CPU tensor");
    }
    address_ = owner_.attr("data_ptr")().cast<uintptr_t>();
    bytes_ = owner_.attr("numel")().cast<int64_t>() * owner_.attr("element_size")().cast<int64_t>();
  } else {
    const py::buffer_info info = py::buffer(owner_).request(writable);
    int64_t stride = info.itemsize;
    for (py::ssize_t d = info.ndim - 1; d >= 0; --d) {
      if (info.shape[d] > 1 && info.strides[d] != stride) throw py::value_error(name + ": expected a contiguous array");
      stride *= info.shape[d];
    }
    address_ = reinterpret_cast<uintptr_t>(info.ptr);
    bytes_ = info.size * info.itemsize;
  }
  if (bytes_) regions().add(address_, static_cast<size_t>(bytes_), name, writable);
}

Array::~Array() {
  if (bytes_) regions().remove(address_);
}

}  // namespace dsn::simt

PYBIND11_MODULE(DSN_SIMT_MODULE, m) {
  using namespace dsn::simt;
  m.doc() = "Runs the CUDA kernels on the host; see csrc/simt/README.md.";
  py::register_exception<Error>(m, "Error", PyExc_RuntimeError);
  py::class_<Array, std::shared_ptr<Array>>(m, "Array", py::module_local()).def_property_readonly("nbytes", &Array::size<>);
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
#if defined(__SANITIZE_ADDRESS__)
  m.attr("sanitizer") = "address";
#else
  m.attr("sanitizer") = "none";
#endif
  for (auto bind : binders()) bind(m);
}
