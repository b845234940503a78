// What the kernels of plans are launched with, and one fault that they get. A file that includes them names its variant
// with DSN_VARIANT and at most one fault: DSN_NO_BARRIER, DSN_NO_OWN_BARRIER (what kernels share in routing.cuh keeps
// its barriers), DSN_NO_COPY_WAIT, DSN_NO_CLUSTER_WAIT, DSN_NO_DEPENDENCY_WAIT. Each variant's kernels live in a
// namespace of their own.
#pragma once

#include "simt/bindings.h"
#include "simt/cuda_on_host.h"
#include "simt/ptx_twins.h"

namespace dsn::ptx {
template <int>
inline void no_copy_wait() {}
inline void no_wait() {}
}  // namespace dsn::ptx

#define cuda DSN_VARIANT

#ifdef DSN_NO_OWN_BARRIER
#include "cuda/routing.cuh"
#define DSN_NO_BARRIER
#endif
#ifdef DSN_NO_BARRIER
#define __syncthreads() static_cast<void>(0)
#endif
#ifdef DSN_NO_COPY_WAIT
#define cp_async_wait no_copy_wait
#endif
#ifdef DSN_NO_CLUSTER_WAIT
#define cluster_arrive no_wait
#define cluster_wait __syncthreads_of_block
#define cluster_sync __syncthreads_of_block
namespace dsn::ptx {
inline void __syncthreads_of_block() { ::__syncthreads(); }
}  // namespace dsn::ptx
#endif
#ifdef DSN_NO_DEPENDENCY_WAIT
#define grid_dependency_wait no_wait
#endif

#include "cuda/routing.cuh"

namespace dsn::simt::bindings::DSN_VARIANT {

using namespace dsn::cuda;

template <auto kKernel, class Params>
void start(const Params& p, int blocks, int threads, int shared_bytes, int cluster = 1) {
  LaunchConfig config;
  config.grid = blocks;
  config.block = threads;
  config.cluster = cluster;
  config.shared_bytes = shared_bytes;
  config.dependent = true;
  check(launch<kKernel>(config, p));
}

// The pooled vector of a map that a launch writes in two tiles, by which no gate is decided. scratch [1 + 2 channels],
// its first word zero.
Pooling pool(Buffer pooled, Buffer scratch, Buffer macs, int channels, int pixels) {
  Pooling pooling{};
  pooling.macs = macs.data<unsigned long long>();
  pooling.tiles = pooling.blocks = 2;
  pooling.partial = scratch.data<float>() + 1;
  pooling.pooled = pooled.data<float>();
  pooling.arrived = scratch.data<unsigned>();
  pooling.channels = pooling.gates.positions = channels;
  pooling.pixels = static_cast<float>(pixels);
  return pooling;
}

#define DSN_NAME(function, variant) #function "_" variant
#define DSN_TEXT_OF(x) #x
#define DSN_TEXT(x) DSN_TEXT_OF(x)

}  // namespace dsn::simt::bindings::DSN_VARIANT
