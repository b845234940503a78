// The CUDA language for g++: what nvcc defines without an include, and the device functions that NVIDIA's own headers
// leave out on the host. Kernels get it through cuda/device.cuh.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "simt/runtime.h"

#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ static_assert(false, "shared memory is dynamic here: dsn::cuda::shared_memory<T>()");
#undef __grid_constant__
#define __grid_constant__
#undef __forceinline__
#define __forceinline__ inline __attribute__((always_inline))

#define threadIdx (::dsn::simt::thread_idx())
#define blockIdx (::dsn::simt::block_idx())
#define blockDim (::dsn::simt::block_dim())
#define gridDim (::dsn::simt::grid_dim())
constexpr int warpSize = 32;

namespace dsn::simt {

// ---- shuffles, votes and reductions: one argument struct and one function that performs for the whole warp ----
enum class Shuffle { kIndex, kUp, kDown, kXor };

struct ShuffleArgument {
  uint64_t value;
  int operand;
  int width;
};

// PTX shfl.sync: a lane whose source lies outside its segment keeps its own value; a source outside `mask` is an error.
void shuffle(Shuffle kind, uint32_t mask, ShuffleArgument& argument);
uint32_t ballot(uint32_t mask, bool predicate);

enum class WarpReduce { kAdd, kMin, kMax, kAnd, kOr, kXor };
int64_t warp_reduce(WarpReduce kind, uint32_t mask, int64_t value);
uint32_t match_any(uint32_t mask, uint64_t value);
void syncwarp(uint32_t mask);

template <class T>
__forceinline__ T shuffle(Shuffle kind, uint32_t mask, T value, int operand, int width) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  ShuffleArgument argument{0, operand, width};
  std::memcpy(&argument.value, &value, sizeof(T));
  shuffle(kind, mask, argument);
  std::memcpy(&value, &argument.value, sizeof(T));
  return value;
}

// Threads of a block take turns, so a plain update is atomic among them; blocks may run on several host threads.
// Not instrumented: access() reports it once, as atomic.
template <class T, class Update>
__attribute__((noinline, no_sanitize("thread"))) T atomic(T* address, Update update) {
  access(address, sizeof(T), AccessKind::kAtomic);
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>>;
  static_assert(sizeof(T) == sizeof(Bits));
  auto* bits = reinterpret_cast<Bits*>(address);
  Bits before = __atomic_load_n(bits, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(bits, &before, std::bit_cast<Bits>(update(std::bit_cast<T>(before))), false,
                                      __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
  }
  return std::bit_cast<T>(before);
}

}  // namespace dsn::simt

// NOLINTBEGIN: names and signatures are CUDA's
inline void __syncthreads(std::source_location where = std::source_location::current()) {
  dsn::simt::syncthreads(where);
}
inline int __syncthreads_count(int p, std::source_location where = std::source_location::current()) {
  return dsn::simt::syncthreads_reduce(dsn::simt::Reduce::kCount, p, where);
}
inline int __syncthreads_and(int p, std::source_location where = std::source_location::current()) {
  return dsn::simt::syncthreads_reduce(dsn::simt::Reduce::kAnd, p, where);
}
inline int __syncthreads_or(int p, std::source_location where = std::source_location::current()) {
  return dsn::simt::syncthreads_reduce(dsn::simt::Reduce::kOr, p, where);
}
inline void __syncwarp(unsigned mask = 0xffffffffu) { dsn::simt::syncwarp(mask); }

template <class T>
__forceinline__ T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return dsn::simt::shuffle(dsn::simt::Shuffle::kIndex, mask, value, lane, width);
}
template <class T>
__forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return dsn::simt::shuffle(dsn::simt::Shuffle::kUp, mask, value, static_cast<int>(delta), width);
}
template <class T>
__forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return dsn::simt::shuffle(dsn::simt::Shuffle::kDown, mask, value, static_cast<int>(delta), width);
}
template <class T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return dsn::simt::shuffle(dsn::simt::Shuffle::kXor, mask, value, lanes, width);
}

__forceinline__ unsigned __ballot_sync(unsigned mask, int p) { return dsn::simt::ballot(mask, p != 0); }
__forceinline__ int __any_sync(unsigned mask, int p) { return dsn::simt::ballot(mask, p != 0) != 0; }
__forceinline__ int __all_sync(unsigned mask, int p) { return dsn::simt::ballot(mask, p != 0) == mask; }
template <class T>
__forceinline__ unsigned __match_any_sync(unsigned mask, T value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return dsn::simt::match_any(mask, bits);
}
template <class T>
__forceinline__ T __reduce_add_sync(unsigned mask, T value) {
  return static_cast<T>(dsn::simt::warp_reduce(dsn::simt::WarpReduce::kAdd, mask, value));
}
template <class T>
__forceinline__ T __reduce_min_sync(unsigned mask, T value) {
  return static_cast<T>(dsn::simt::warp_reduce(dsn::simt::WarpReduce::kMin, mask, value));
}
template <class T>
__forceinline__ T __reduce_max_sync(unsigned mask, T value) {
  return static_cast<T>(dsn::simt::warp_reduce(dsn::simt::WarpReduce::kMax, mask, value));
}
__forceinline__ unsigned __reduce_and_sync(unsigned mask, unsigned value) {
  return static_cast<unsigned>(dsn::simt::warp_reduce(dsn::simt::WarpReduce::kAnd, mask, value));
}
__forceinline__ unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return static_cast<unsigned>(dsn::simt::warp_reduce(dsn::simt::WarpReduce::kOr, mask, value));
}
__forceinline__ unsigned __reduce_xor_sync(unsigned mask, unsigned value) {
  return static_cast<unsigned>(dsn::simt::warp_reduce(dsn::simt::WarpReduce::kXor, mask, value));
}

template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return dsn::simt::atomic(address, [=](T before) -> T { return before + value; });
}
template <class T>
T atomicSub(T* address, std::type_identity_t<T> value) {
  return dsn::simt::atomic(address, [=](T before) -> T { return before - value; });
}
template <class T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return dsn::simt::atomic(address, [=](T before) { return before > value ? before : value; });
}
template <class T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return dsn::simt::atomic(address, [=](T before) { return before < value ? before : value; });
}
template <class T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return dsn::simt::atomic(address, [=](T before) { return before | value; });
}
template <class T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
  return dsn::simt::atomic(address, [=](T before) { return before & value; });
}
template <class T>
T atomicXor(T* address, std::type_identity_t<T> value) {
  return dsn::simt::atomic(address, [=](T before) { return before ^ value; });
}
template <class T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return dsn::simt::atomic(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  return dsn::simt::atomic(address, [=](T before) { return before == compare ? value : before; });
}
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return dsn::simt::atomic(address, [=](unsigned before) { return before >= limit ? 0u : before + 1; });
}

// Memory is coherent among fibers; ordering between them is what the race detector asks of barriers.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
[[noreturn]] inline void __trap() { dsn::simt::fail("__trap()"); }

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, std::type_identity_t<T> value) {
  *p = value;
}
template <class T>
void __stcs(T* p, std::type_identity_t<T> value) {
  *p = value;
}

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned choice = selector >> 4 * i & 0xf;
    unsigned byte = static_cast<unsigned>(bytes >> 8 * (choice & 7)) & 0xff;
    if (choice & 8) byte = byte & 0x80 ? 0xff : 0;
    result |= byte << 8 * i;
  }
  return result;
}
inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<unsigned>(static_cast<uint64_t>(x) * y >> 32); }

inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __saturatef(float x) { return std::fmin(std::fmax(x, 0.0f), 1.0f); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
using std::max;
using std::min;

inline __half __hfma(__half a, __half b, __half c) {
  return __float2half(std::fma(__half2float(a), __half2float(b), __half2float(c)));
}
inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }
inline __half2 __hfma2_relu(__half2 a, __half2 b, __half2 c) {
  return __hmax2(__hfma2(a, b, c), __float2half2_rn(0.0f));
}
inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  return __float2bfloat16(std::fma(__bfloat162float(a), __bfloat162float(b), __bfloat162float(c)));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
inline __nv_bfloat162 __hfma2_relu(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return __hmax2(__hfma2(a, b, c), __float2bfloat162_rn(0.0f));
}
// NOLINTEND
