// What the undefined-behaviour sanitizer calls, for all but what the engine itself checks of an access. libubsan is not
// linked: it reports a line once per process, prints and goes on; here a kernel ends with an error each time.
#include <cstdio>
#include <cstdlib>

#include "simt/engine.h"

#if !defined(__SANITIZE_ADDRESS__)

namespace {

// GCC's records: each begins with the source location.
struct Location {
  const char* file;
  uint32_t line;
  uint32_t column;
};
struct Type {
  uint16_t kind;
  uint16_t info;  // of an integer: bit 0 is its sign, the rest log2 of its bits
  char name[1];   // quoted
};
struct OutOfBounds {
  Location location;
  const Type* array;
  const Type* index;
};

[[noreturn]] void report(const void* data, const std::string& what, uintptr_t pc) {
  const std::string text = "undefined behaviour: " + what;
  if (dsn::simt::engine) dsn::simt::engine->fail(pc, text);
  const auto& location = *static_cast<const Location*>(data);
  std::fprintf(stderr, "%s:%u: %s\n", location.file, location.line, text.c_str());
  std::abort();
}

}  // namespace

extern "C" {

void __ubsan_handle_out_of_bounds(OutOfBounds* data, uintptr_t index) {
  const int unused = 64 - (1 << (data->index->info >> 1));
  const bool is_signed = data->index->info & 1;
  const std::string value =
      is_signed ? std::to_string(static_cast<int64_t>(index << unused) >> unused) : std::to_string(index);
  report(data, "index " + value + " out of bounds for type " + data->array->name, DSN_SIMT_CALLER);
}

#define DSN_SIMT_UNDEFINED(name, what) \
  void __ubsan_handle_##name(void* data) { report(data, what, DSN_SIMT_CALLER); }
DSN_SIMT_UNDEFINED(add_overflow, "signed integer overflow in an addition")
DSN_SIMT_UNDEFINED(sub_overflow, "signed integer overflow in a subtraction")
DSN_SIMT_UNDEFINED(mul_overflow, "signed integer overflow in a multiplication")
DSN_SIMT_UNDEFINED(negate_overflow, "signed integer overflow in a negation")
DSN_SIMT_UNDEFINED(divrem_overflow, "division by zero or overflow in a division")
DSN_SIMT_UNDEFINED(shift_out_of_bounds, "shift by too many bits or of a negative value")
DSN_SIMT_UNDEFINED(load_invalid_value, "load of a value that its bool or enum type does not have")
DSN_SIMT_UNDEFINED(vla_bound_not_positive, "array of a size that is not positive")
DSN_SIMT_UNDEFINED(builtin_unreachable, "reached code that was declared unreachable")
DSN_SIMT_UNDEFINED(missing_return, "end of a function that must return a value")
DSN_SIMT_UNDEFINED(invalid_builtin, "zero passed to a bit count that does not take it")
DSN_SIMT_UNDEFINED(nonnull_arg, "null passed where the callee forbids it")
DSN_SIMT_UNDEFINED(nonnull_return_v1, "null returned where the declaration forbids it")
#undef DSN_SIMT_UNDEFINED

}  // extern "C"

#endif
