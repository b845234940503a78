// Stacks and the switch between them. One system call per stack when it is made, none per switch.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace dsn::simt {

// A suspended computation: where its stack stands and, for the address sanitizer, where its stack lies.
struct Context {
  void* stack_pointer = nullptr;
  void* bottom = nullptr;
  size_t size = 0;
  void* fake_stack = nullptr;
};

// Saves the running computation in `from` and continues `to`.
void switch_context(Context& from, Context& to);

// The same, for one that never continues.
[[noreturn]] void leave_context(Context& from, Context& to);

// First thing on a new stack; `from` is the context that switched here.
void enter_context(Context& from);

// Stacks of equal size, each above a guard page, in one range of addresses.
class StackPool {
 public:
  static constexpr size_t kStackBytes = 256 * 1024;

  explicit StackPool(int stacks);
  ~StackPool();
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;

  // A context on stack `index` that will call `entry`, which must not return.
  Context prepare(int index, void (*entry)());

  const char* begin() const { return memory_; }
  size_t bytes() const { return bytes_; }

 private:
  char* memory_;
  size_t bytes_;
};

}  // namespace dsn::simt
