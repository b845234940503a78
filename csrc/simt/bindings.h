// What a file of bindings/ needs to show a launcher to Python. No Python header: these files are compiled with
// instrumentation, and pybind11 would take longer to compile than the kernels.
//
//   void scale(Buffer out, Buffer in, float factor) { check(cuda::launch_scale({out.data<float>(), ...})); }
//   DSN_SIMT_BIND(scale);
//
// Python then has scale(out, in, factor). Arguments may be Buffer (made by input() and output()), integers, bools and
// floating-point numbers; a function returns nothing or a number.
#pragma once

#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "simt/runtime.h"

namespace dsn::simt {

// Memory that kernels may touch.
struct Buffer {
  void* address = nullptr;  // null: None in Python
  int64_t bytes = 0;

  template <class T>
  T* data() const {
    return static_cast<T*>(address);
  }
  // Elements of type T.
  template <class T>
  int64_t size() const {
    return bytes / static_cast<int64_t>(sizeof(T));
  }
};

using Argument = std::variant<int64_t, double, Buffer>;

struct Function {
  std::string name;
  size_t arguments;
  std::function<double(const std::vector<Argument>&)> call;  // NaN: returns nothing
};
std::vector<Function>& functions();

// Throws what a launcher returned.
void check(cudaError_t status);

template <class T>
T convert(const Argument& argument) {
  if constexpr (std::is_same_v<T, Buffer>) {
    if (const auto* buffer = std::get_if<Buffer>(&argument)) return *buffer;
    throw std::invalid_argument("expected a buffer of input() or output(), got a number");
  } else {
    static_assert(std::is_arithmetic_v<T>);
    if (const auto* integer = std::get_if<int64_t>(&argument)) return static_cast<T>(*integer);
    if (const auto* real = std::get_if<double>(&argument); real && std::is_floating_point_v<T>) {
      return static_cast<T>(*real);
    }
    throw std::invalid_argument(std::is_floating_point_v<T> ? "expected a number" : "expected an integer");
  }
}

struct Binder {
  template <class R, class... A>
  Binder(const char* name, R (*function)(A...)) {
    functions().push_back({name, sizeof...(A), [function](const std::vector<Argument>& arguments) {
                             return call(function, arguments, std::index_sequence_for<A...>());
                           }});
  }

 private:
  template <class R, class... A, size_t... I>
  static double call(R (*function)(A...), const std::vector<Argument>& arguments, std::index_sequence<I...>) {
    if constexpr (std::is_void_v<R>) {
      function(convert<std::remove_cvref_t<A>>(arguments[I])...);
      return __builtin_nan("");
    } else {
      return static_cast<double>(function(convert<std::remove_cvref_t<A>>(arguments[I])...));
    }
  }
};

#define DSN_SIMT_BIND(function) static const ::dsn::simt::Binder bind_##function(#function, function)

}  // namespace dsn::simt
