// Twins of the tensor-core instructions: the last lane to arrive computes for its warp.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "simt/engine.h"
#include "simt/ptx_twins.h"

namespace dsn::ptx {
namespace {

using namespace simt;

constexpr uint32_t kFullWarp = 0xffffffffu;

struct MmaArgument {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

float half_to_float(uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }
float bfloat16_to_float(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

using Vector = float __attribute__((vector_size(32)));  // a row of B or D

// D [16][8] += A [16][K] B [K][8], gathered from and scattered to the fragments of the lanes.
template <int K, class LoadA, class LoadB>
void multiply(void* const* arguments, LoadA load_a, LoadB load_b) {
  float a[16][K];
  Vector b[K];
  Vector d[16];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& argument = *static_cast<const MmaArgument*>(arguments[lane]);
    const int group = lane / 4;
    const int t = lane % 4;
    load_a(a, argument.a, group, t);
    load_b(b, argument.b, group, t);
    for (int i = 0; i < 4; ++i) d[group + i / 2 * 8][2 * t + i % 2] = argument.d[i];
  }
  for (int row = 0; row < 16; ++row) {
    Vector sum = d[row];
    for (int k = 0; k < K; ++k) sum += a[row][k] * b[k];
    d[row] = sum;
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& argument = *static_cast<const MmaArgument*>(arguments[lane]);
    for (int i = 0; i < 4; ++i) argument.d[i] = d[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
  }
  engine->counters.mma_macs += 16 * 8 * K;
}

template <float (*kConvert)(uint16_t)>
void multiply_16bit(void* const* arguments) {
  multiply<16>(
      arguments,
      [](float (&a)[16][16], const uint32_t* registers, int group, int t) {
        for (int i = 0; i < 4; ++i) {
          const int row = group + i % 2 * 8;
          const int column = 2 * t + i / 2 * 8;
          a[row][column] = kConvert(static_cast<uint16_t>(registers[i]));
          a[row][column + 1] = kConvert(static_cast<uint16_t>(registers[i] >> 16));
        }
      },
      [](Vector(&b)[16], const uint32_t* registers, int group, int t) {
        for (int i = 0; i < 2; ++i) {
          b[2 * t + i * 8][group] = kConvert(static_cast<uint16_t>(registers[i]));
          b[2 * t + i * 8 + 1][group] = kConvert(static_cast<uint16_t>(registers[i] >> 16));
        }
      });
}

constexpr WarpOp kMmaF16 = {"mma.m16n8k16 (fp16)", [](void* const* arguments, uint32_t) {
                              ++engine->counters.mma_m16n8k16_f16;
                              multiply_16bit<half_to_float>(arguments);
                            }};
constexpr WarpOp kMmaBf16 = {"mma.m16n8k16 (bf16)", [](void* const* arguments, uint32_t) {
                               ++engine->counters.mma_m16n8k16_bf16;
                               multiply_16bit<bfloat16_to_float>(arguments);
                             }};
void mma(const WarpOp& op, float* d, const uint32_t* a, const uint32_t* b, uintptr_t pc) {
  MmaArgument argument{d, a, b};
  running().warp_collective(op, kFullWarp, &argument, pc);
}

}  // namespace

template <>
void mma_m16n8k16<__half>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma(kMmaF16, d, a, b, DSN_SIMT_CALLER);
}

template <>
void mma_m16n8k16<__nv_bfloat16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma(kMmaBf16, d, a, b, DSN_SIMT_CALLER);
}

}  // namespace dsn::ptx
