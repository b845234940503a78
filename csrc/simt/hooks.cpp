// Kernels are compiled with GCC's thread-sanitizer instrumentation, which calls a function at every load and store.
// These are those functions: they lead to the engine's checks instead of to libtsan, which is not linked. (The address
// sanitizer cannot stand in: it folds a load and a store of one address into one check, and so would hide the store.)
#include "simt/engine.h"

#if !defined(__SANITIZE_ADDRESS__)

using dsn::simt::AccessKind;

namespace {

inline void on_access(void* address, size_t bytes, AccessKind kind, uintptr_t pc) {
  if (dsn::simt::Engine* e = dsn::simt::engine) e->access(reinterpret_cast<uintptr_t>(address), bytes, kind, pc);
}

}  // namespace

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

#define DSN_SIMT_HOOKS(bytes)                                                                               \
  void __tsan_read##bytes(void* p) { on_access(p, bytes, AccessKind::kRead, DSN_SIMT_CALLER); }             \
  void __tsan_write##bytes(void* p) { on_access(p, bytes, AccessKind::kWrite, DSN_SIMT_CALLER); }           \
  void __tsan_unaligned_read##bytes(void* p) { on_access(p, bytes, AccessKind::kRead, DSN_SIMT_CALLER); }   \
  void __tsan_unaligned_write##bytes(void* p) { on_access(p, bytes, AccessKind::kWrite, DSN_SIMT_CALLER); } \
  void __tsan_volatile_read##bytes(void* p) { on_access(p, bytes, AccessKind::kRead, DSN_SIMT_CALLER); }    \
  void __tsan_volatile_write##bytes(void* p) { on_access(p, bytes, AccessKind::kWrite, DSN_SIMT_CALLER); }
DSN_SIMT_HOOKS(1)
DSN_SIMT_HOOKS(2)
DSN_SIMT_HOOKS(4)
DSN_SIMT_HOOKS(8)
DSN_SIMT_HOOKS(16)
#undef DSN_SIMT_HOOKS

void __tsan_read_range(void* p, size_t bytes) { on_access(p, bytes, AccessKind::kRead, DSN_SIMT_CALLER); }
void __tsan_write_range(void* p, size_t bytes) { on_access(p, bytes, AccessKind::kWrite, DSN_SIMT_CALLER); }

// Atomics of the host's own code beside the kernels; these have those of CUDA.
uint64_t __tsan_atomic64_load(const volatile uint64_t* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
uint64_t __tsan_atomic64_fetch_or(volatile uint64_t* p, uint64_t bits, int) {
  return __atomic_fetch_or(p, bits, __ATOMIC_SEQ_CST);
}

}  // extern "C"

#endif
