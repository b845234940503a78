#include "simt/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__x86_64__) && !defined(DSN_SIMT_UCONTEXT)
#define DSN_SIMT_OWN_SWITCH 1
#else
#include <ucontext.h>
#endif

namespace dsn::simt {

#ifdef DSN_SIMT_OWN_SWITCH

// Pushes the registers that a call preserves, swaps stacks, pops those of the other side.
extern "C" void dsn_simt_switch(void** save, void* load);
asm(R"(
.text
.globl dsn_simt_switch
.hidden dsn_simt_switch
.type dsn_simt_switch, @function
dsn_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size dsn_simt_switch, .-dsn_simt_switch
)");

namespace {

void* new_stack(char* bottom, size_t size, void (*entry)()) {
  void** top = reinterpret_cast<void**>(bottom + size);
  *--top = nullptr;  // the return address of `entry`, and the alignment a called function expects
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  return top;
}

void swap_stacks(Context& from, Context& to) { dsn_simt_switch(&from.stack_pointer, to.stack_pointer); }

}  // namespace

#else  // any other processor: the C library's switch, a system call slower

namespace {

void* new_stack(char* bottom, size_t size, void (*entry)()) {
  auto* context = new (bottom) ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = bottom + sizeof(ucontext_t);
  context->uc_stack.ss_size = size - sizeof(ucontext_t);
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

void swap_stacks(Context& from, Context& to) {
  ucontext_t here;  // on the stack that is left, where it stays until that one continues
  from.stack_pointer = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to.stack_pointer));
}

}  // namespace

#endif

#if defined(__SANITIZE_ADDRESS__)

void switch_context(Context& from, Context& to) {
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
  swap_stacks(from, to);
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
}

void leave_context(Context& from, Context& to) {
  __sanitizer_start_switch_fiber(nullptr, to.bottom, to.size);
  swap_stacks(from, to);
  std::abort();
}

void enter_context(Context& from) {
  const void* bottom = nullptr;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &from.size);
  from.bottom = const_cast<void*>(bottom);
}

#else

void switch_context(Context& from, Context& to) { swap_stacks(from, to); }

void leave_context(Context& from, Context& to) {
  swap_stacks(from, to);
  std::abort();
}

void enter_context(Context&) {}

#endif

namespace {
constexpr size_t kGuardBytes = 4096;
}

StackPool::StackPool(int stacks) : bytes_(static_cast<size_t>(stacks) * (kStackBytes + kGuardBytes)) {
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<char*>(memory);
  for (int i = 0; i < stacks; ++i) {
    mprotect(memory_ + static_cast<size_t>(i) * (kStackBytes + kGuardBytes), kGuardBytes, PROT_NONE);
  }
}

StackPool::~StackPool() { munmap(memory_, bytes_); }

Context StackPool::prepare(int index, void (*entry)()) {
  char* bottom = memory_ + static_cast<size_t>(index) * (kStackBytes + kGuardBytes) + kGuardBytes;
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(bottom, kStackBytes);  // what frames left behind that were abandoned
#endif
  Context context;
  context.bottom = bottom;
  context.size = kStackBytes;
  context.stack_pointer = new_stack(bottom, kStackBytes, entry);
  return context;
}

}  // namespace dsn::simt
