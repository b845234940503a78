// For bindings that need more of pybind11 than bindings.h gives: files of python/ are compiled without instrumentation,
// so they hold no kernel, and call launchers that a file of bindings/ instantiates. DSN_SIMT_BINDINGS(name) {
// m.def(...) } adds to the module when it is loaded.
#pragma once

#include <pybind11/pybind11.h>

#include "simt/bindings.h"

namespace py = pybind11;

namespace dsn::simt {

// A Buffer that is known to the runner, by name, as long as this object lives: a NumPy array, a torch CPU tensor, or
// anything with Python's buffer protocol, used in place.
class Array {
 public:
  Array(py::object owner, const std::string& name, bool writable);
  Array(const Array&) = delete;
  ~Array();

  const Buffer& buffer() const { return buffer_; }
  template <class T>
  T* data() const {
    return buffer_.data<T>();
  }
  // Elements of type T.
  template <class T = unsigned char>
  int64_t size() const {
    return buffer_.size<T>();
  }

 private:
  py::object owner_;
  Buffer buffer_;
};

struct PythonBinder {
  using Bind = void (*)(py::module_&);
  explicit PythonBinder(Bind bind);
};

#define DSN_SIMT_BINDINGS(name)                                      \
  static void bind_##name(py::module_& m);                           \
  static const ::dsn::simt::PythonBinder binder_##name(bind_##name); \
  static void bind_##name([[maybe_unused]] py::module_& m)

}  // namespace dsn::simt
