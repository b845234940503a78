// One kernel, launched with more and with less shared memory, from one host thread and from two.
#include <pthread.h>

#include <thread>

#include "cuda/device.cuh"
#include "simt/bindings.h"
#include "simt/streams.h"

namespace dsn::simt::bindings {
namespace {

struct LastWordParams {
  int* out;  // [1]: grows by the shared memory's size in words
  int words;
};

enum Test { kUnasked, kAsked, kLowered };  // each has a kernel of its own: a limit that is raised stays so

// Uses the last word of the block's shared memory.
template <Test kTest>
__global__ void last_word_kernel(const __grid_constant__ LastWordParams p) {
  int* last = cuda::shared_memory<int>() + p.words - 1;
  *last = p.words;
  *p.out += *last;
}

template <Test kTest>
cudaError_t launch_last_word(Buffer out, int bytes, Stream* stream) {
  cuda::LaunchConfig config;
  config.grid = 1;
  config.block = 1;
  config.shared_bytes = bytes;
  config.stream = reinterpret_cast<cudaStream_t>(stream);
  return cuda::launch<last_word_kernel<kTest>>(config, LastWordParams{out.data<int>(), bytes / 4});
}

cudaError_t set_limit(int bytes) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(last_word_kernel<kLowered>),
                              cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

template <Test kTest>
void put_both(StreamSet& set, Buffer out, int first, int second) {
  check(launch_last_word<kTest>(out, first, set.get(0)));
  check(launch_last_word<kTest>(out, second, set.get(0)));
}

}  // namespace

// Puts a launch of each size into one stream, then runs both.
void launch_in_a_row(Buffer out, int first, int second) {
  StreamSet set(1);
  put_both<kAsked>(set, out, first, second);
  set.play(0);
}
DSN_SIMT_BIND(launch_in_a_row);

// The same, with another limit set before they run.
void launch_under_a_limit(Buffer out, int first, int second, int limit) {
  StreamSet set(1);
  put_both<kLowered>(set, out, first, second);
  check(set_limit(limit));
  set.play(0);
}
DSN_SIMT_BIND(launch_under_a_limit);

// Two host threads put `rounds` launches each into a stream of their own, one large ones and one small ones; then all
// are run. Returns how many were refused.
int launch_from_two_threads(Buffer out, int large, int small, int rounds) {
  StreamSet sets[2] = {StreamSet(1), StreamSet(1)};
  int refused[2] = {};
  pthread_barrier_t both;
  pthread_barrier_init(&both, nullptr, 2);
  const auto work = [&](int index, int bytes) {
    pthread_barrier_wait(&both);
    for (int i = 0; i < rounds; ++i)
      refused[index] += launch_last_word<kAsked>(out, bytes, sets[index].get(0)) != cudaSuccess;
  };
  std::thread other(work, 1, small);
  work(0, large);
  other.join();
  pthread_barrier_destroy(&both);
  for (StreamSet& set : sets) set.play(0);
  return refused[0] + refused[1];
}
DSN_SIMT_BIND(launch_from_two_threads);

// A launch past launch(), for which nobody raised the limit.
void launch_unasked(Buffer out, int bytes) {
  struct Config {
    dim3 grid = 1, block = 1, cluster = dim3(1, 1, 1);
    int shared_bytes;
    bool dependent = false;
    cudaStream_t stream = nullptr;
  } config;
  config.shared_bytes = bytes;
  check(launch<last_word_kernel<kUnasked>>(config, LastWordParams{out.data<int>(), bytes / 4}));
}
DSN_SIMT_BIND(launch_unasked);

}  // namespace dsn::simt::bindings
