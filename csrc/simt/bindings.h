// What a file of bindings/ needs: DSN_SIMT_BINDINGS(name) { m.def(...) } adds to the module when it is loaded.
#pragma once

#include <pybind11/pybind11.h>

#include "simt/engine.h"

namespace py = pybind11;

namespace dsn::simt {

// A buffer that kernels may touch, used in place: of a NumPy array, a torch CPU tensor, or anything with Python's buffer
// protocol. Known to the runner, by name, as long as this object lives.
class Array {
 public:
  Array(py::object owner, const std::string& name, bool writable);
  Array(const Array&) = delete;
  ~Array();

  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(address_);
  }
  // Elements of type T.
  template <class T = unsigned char>
  int64_t size() const {
    return bytes_ / static_cast<int64_t>(sizeof(T));
  }

 private:
  py::object owner_;
  uintptr_t address_ = 0;
  int64_t bytes_ = 0;
};

// Throws what a launcher returned.
void check(cudaError_t status);

struct Binder {
  using Function = void (*)(py::module_&);
  explicit Binder(Function function);
};

#define DSN_SIMT_BINDINGS(name)                                            \
  static void bind_##name(py::module_& m);                                 \
  static const ::dsn::simt::Binder binder_##name(bind_##name);             \
  static void bind_##name([[maybe_unused]] py::module_& m)

}  // namespace dsn::simt
