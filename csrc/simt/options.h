// How kernels are run, and what was counted. Both are seen from Python.
#pragma once

#include <cstdint>

namespace dsn::simt {

struct Options {
  uint64_t seed = 0;     // order of blocks, warps and lanes
  int host_threads = 1;  // blocks (clusters) that run at a time
  bool check_races = true;
  int shared_limit = 227 * 1024;  // bytes a block may ask for
};
Options& options();
const char* sanitizer();  // "none" or "address": what this build was made with, see build.py

// One entry per counter: X(name).
#define DSN_SIMT_COUNTERS(X)                                                                          \
  X(launches)                                                                                         \
  X(blocks)                                                                                           \
  X(idle_blocks)       /* blocks that ended without a store or an atomic on global memory */          \
  X(global_load_bytes) /* of every thread's loads, asynchronous copies included; atomics are apart */ \
  X(global_store_bytes)                                                                               \
  X(shared_load_bytes)                                                                                \
  X(shared_store_bytes)                                                                               \
  X(global_atomics)                                                                                   \
  X(shared_atomics)                                                                                   \
  X(block_barriers) /* __syncthreads and its reductions, once per block and time */                   \
  X(cluster_barriers)                                                                                 \
  X(warp_barriers)    /* __syncwarp */                                                                \
  X(shuffles)         /* shuffles, votes, matches and reductions, once per warp */                    \
  X(mma_m16n8k16_f16) /* instructions, once per warp */                                               \
  X(mma_m16n8k16_bf16)                                                                                \
  X(mma_macs) /* multiply-accumulates of all of them */                                               \
  X(cp_async) /* copies, once per thread */

struct Counters {
#define DSN_SIMT_FIELD(name) int64_t name = 0;
  DSN_SIMT_COUNTERS(DSN_SIMT_FIELD)
#undef DSN_SIMT_FIELD
  Counters& operator+=(const Counters& other) {
#define DSN_SIMT_ADD(name) name += other.name;
    DSN_SIMT_COUNTERS(DSN_SIMT_ADD)
#undef DSN_SIMT_ADD
    return *this;
  }
};
Counters& counters();  // since the process began or they were last reset

}  // namespace dsn::simt
