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

float tf32_to_float(uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000u); }

constexpr WarpOp kMmaF16 = {"mma.m16n8k16 (fp16)", [](void* const* arguments, uint32_t) {
                              ++engine->counters.mma_m16n8k16_f16;
                              multiply_16bit<half_to_float>(arguments);
                            }};
constexpr WarpOp kMmaBf16 = {"mma.m16n8k16 (bf16)", [](void* const* arguments, uint32_t) {
                               ++engine->counters.mma_m16n8k16_bf16;
                               multiply_16bit<bfloat16_to_float>(arguments);
                             }};
constexpr WarpOp kMmaTf32 = {"mma.m16n8k8 (tf32)", [](void* const* arguments, uint32_t) {
                               ++engine->counters.mma_m16n8k8_tf32;
                               multiply<8>(
                                   arguments,
                                   [](float (&a)[16][8], const uint32_t* registers, int group, int t) {
                                     for (int i = 0; i < 4; ++i)
                                       a[group + i % 2 * 8][t + i / 2 * 4] = tf32_to_float(registers[i]);
                                   },
                                   [](Vector(&b)[8], const uint32_t* registers, int group, int t) {
                                     for (int i = 0; i < 2; ++i) b[t + i * 4][group] = tf32_to_float(registers[i]);
                                   });
                             }};

struct LdmatrixArgument {
  uint32_t* r;
  uint32_t address;
  uintptr_t pc;
};

// Passes over the 32 banks that eight rows of 16 bytes take.
int wavefronts(void* const* arguments, int matrix) {
  int uses[8] = {};
  int most = 0;
  for (int row = 0; row < 8; ++row) {
    const uint32_t address = static_cast<LdmatrixArgument*>(arguments[8 * matrix + row])->address;
    bool seen = false;
    for (int before = 0; before < row; ++before) {
      seen |= static_cast<LdmatrixArgument*>(arguments[8 * matrix + before])->address == address;
    }
    if (!seen) most = std::max(most, ++uses[address / 16 % 8]);
  }
  return most;
}

template <int kMatrices, bool kTransposed>
void perform_ldmatrix(void* const* arguments, uint32_t) {
  Engine& e = *engine;
  ++e.counters.ldmatrix;
  e.counters.shared_load_bytes += 128 * kMatrices;
  for (int lane = 8 * kMatrices; lane < kWarpSize; ++lane) {  // not used, and sm_75 wants them valid all the same
    const auto& [r, address, pc] = *static_cast<const LdmatrixArgument*>(arguments[lane]);
    e.shared_pointer(address, 16, AccessKind::kRead, pc);
  }
  for (int matrix = 0; matrix < kMatrices; ++matrix) {
    e.counters.ldmatrix_wavefronts += wavefronts(arguments, matrix);
    uint16_t rows[8][8];
    for (int row = 0; row < 8; ++row) {
      const int provider = 8 * matrix + row;
      const auto& [r, address, pc] = *static_cast<const LdmatrixArgument*>(arguments[provider]);
      const unsigned char* pointer = e.shared_pointer(address, 16, AccessKind::kRead, pc);
      if (address % 16) {
        e.fail(pc, "ldmatrix: the row address of lane " + std::to_string(provider) +
                       " is not aligned to 16 bytes: shared memory + " +
                       std::to_string((address - kSharedBase) % kSharedSlot));
      }
      // Several lanes receive a row: the check stands for one that is not the lane that gave the address.
      int receiver = kTransposed ? row / 2 : 4 * row;
      if (receiver == provider) receiver += kTransposed ? 4 : 1;
      e.shared_touch(*e.self().warp->lanes[receiver], pointer, 16, AccessKind::kRead, pc);
      std::memcpy(rows[row], pointer, 16);
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int i = lane / 4;
      const int j = 2 * (lane % 4);
      const uint16_t low = kTransposed ? rows[j][i] : rows[i][j];
      const uint16_t high = kTransposed ? rows[j + 1][i] : rows[i][j + 1];
      static_cast<LdmatrixArgument*>(arguments[lane])->r[matrix] = static_cast<uint32_t>(high) << 16 | low;
    }
  }
}

constexpr WarpOp kLdmatrix[2][3] = {
    {{"ldmatrix.x1", perform_ldmatrix<1, false>},
     {"ldmatrix.x2", perform_ldmatrix<2, false>},
     {"ldmatrix.x4", perform_ldmatrix<4, false>}},
    {{"ldmatrix.x1.trans", perform_ldmatrix<1, true>},
     {"ldmatrix.x2.trans", perform_ldmatrix<2, true>},
     {"ldmatrix.x4.trans", perform_ldmatrix<4, true>}},
};

void mma(const WarpOp& op, float* d, const uint32_t* a, const uint32_t* b, uintptr_t pc) {
  MmaArgument argument{d, a, b};
  running().warp_collective(op, kFullWarp, &argument, pc);
}

void ldmatrix(uint32_t* r, int matrices, bool transposed, uint32_t address, uintptr_t pc) {
  Engine& e = running();
  LdmatrixArgument argument{r, address, pc};
  e.warp_collective(kLdmatrix[transposed][matrices / 2], kFullWarp, &argument, pc);
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

void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma(kMmaTf32, d, a, b, DSN_SIMT_CALLER);
}

uint32_t to_tf32(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  return std::isfinite(value) ? (bits + 0x1000u) & 0xffffe000u : bits;
}

template <bool kTransposed>
void ldmatrix_x1(uint32_t (&r)[1], uint32_t address) {
  ldmatrix(r, 1, kTransposed, address, DSN_SIMT_CALLER);
}
template <bool kTransposed>
void ldmatrix_x2(uint32_t (&r)[2], uint32_t address) {
  ldmatrix(r, 2, kTransposed, address, DSN_SIMT_CALLER);
}
template <bool kTransposed>
void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
  ldmatrix(r, 4, kTransposed, address, DSN_SIMT_CALLER);
}
template void ldmatrix_x1<false>(uint32_t (&)[1], uint32_t);
template void ldmatrix_x1<true>(uint32_t (&)[1], uint32_t);
template void ldmatrix_x2<false>(uint32_t (&)[2], uint32_t);
template void ldmatrix_x2<true>(uint32_t (&)[2], uint32_t);
template void ldmatrix_x4<false>(uint32_t (&)[4], uint32_t);
template void ldmatrix_x4<true>(uint32_t (&)[4], uint32_t);

}  // namespace dsn::ptx
