// What kernels and launchers see of the runner. The rest of csrc/simt is behind it.
#pragma once

#include <driver_types.h>
#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <source_location>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace dsn::simt {

// What a kernel did wrong: kernel, block, thread, source line, and what happened.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ---- launching ----
class Stream;

struct Launch {
  std::string_view kernel;
  dim3 grid;
  dim3 block;
  dim3 cluster;
  int shared_bytes;
  bool dependent;
  void (*entry)(const void* params);
  const void* params;
  size_t params_bytes;
  const Stream* stream;
  const void* function;  // the kernel, as cudaFuncSetAttribute knows it
};

// Runs a kernel to its end. Throws Error; a configuration that a device would refuse comes back as its error.
cudaError_t run(const Launch& launch);
cudaError_t refusal(const Launch& launch);

// Puts a kernel with a copy of its parameters into a stream, to be run when that is played.
cudaError_t enqueue(Stream* stream, const Launch& launch);

template <auto kKernel>
consteval std::string_view kernel_name() {
  std::string_view name = __PRETTY_FUNCTION__;
  name.remove_prefix(name.find("kKernel = ") + 10);
  return name.substr(0, name.rfind(';') == name.npos ? name.rfind(']') : name.rfind(';'));
}

// Of the null stream at once; other streams are those of simt/streams.h.
template <auto kKernel, class Config, class Params>
cudaError_t launch(const Config& config, const Params& params) {
  auto entry = [](const void* p) { kKernel(*static_cast<const Params*>(p)); };
  auto* stream = reinterpret_cast<Stream*>(config.stream);
  const Launch launch{kernel_name<kKernel>(),
                      config.grid,
                      config.block,
                      config.cluster,
                      config.shared_bytes,
                      config.dependent,
                      entry,
                      &params,
                      sizeof(Params),
                      stream,
                      reinterpret_cast<const void*>(kKernel)};
  return stream ? enqueue(stream, launch) : run(launch);
}

// ---- the running thread ----
// Constant for a thread, and code runs in one thread: the compiler may remember them.
[[gnu::const]] uint3 thread_idx();
[[gnu::const]] uint3 block_idx();
[[gnu::const]] dim3 block_dim();
[[gnu::const]] dim3 grid_dim();
[[gnu::const]] unsigned char* shared_memory();

// ---- barriers of a block ----
void syncthreads(std::source_location where = std::source_location::current());
enum class Reduce { kCount, kAnd, kOr };
int syncthreads_reduce(Reduce reduce, int predicate, std::source_location where = std::source_location::current());

// ---- warp collectives: every lane of `mask` calls with its own argument; the last to arrive performs for all ----
struct WarpOp {
  const char* name;
  // arguments[lane] of each lane in `mask`; the others are null.
  void (*perform)(void* const* arguments, uint32_t mask);
  bool orders_memory = false;
};
void warp_collective(const WarpOp& op, uint32_t mask, void* argument);

// ---- memory ----
enum class AccessKind : uint8_t { kRead, kWrite, kAtomic };
// Checks and counts an access that the compiler's instrumentation does not see.
void access(const void* address, size_t bytes, AccessKind kind);
// Ends the kernel with an error at the caller's line.
[[noreturn]] void fail(const std::string& what);

}  // namespace dsn::simt
