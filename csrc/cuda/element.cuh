// Groups of four channels of an element type, and what kernels do to them.
#pragma once

#include "cuda/params.h"
#include "cuda/ptx.cuh"

namespace dsn::cuda {

__device__ inline float relu(float v) { return v < 0.f ? 0.f : v; }  // NaN stays
__device__ inline float relu6(float v) { return v > 6.f ? 6.f : relu(v); }
__device__ inline float sigmoid(float v) { return __fdividef(1.f, 1.f + expf(-v)); }

__device__ inline float activate(Activation kind, float v) {
  switch (kind) {
    case Activation::kRelu:
      return relu(v);
    case Activation::kRelu6:
      return relu6(v);
    case Activation::kSigmoid:
      return sigmoid(v);
    case Activation::kHardSigmoid:
      return relu6(v + 3.f) * (1.f / 6);
    case Activation::kSilu:
      return v * sigmoid(v);
    case Activation::kHardSwish:
      return v * relu6(v + 3.f) * (1.f / 6);
    case Activation::kTanh:
      return tanhf(v);
    default:
      return v;
  }
}

// A pair of __half or __nv_bfloat16, and what the two types do under different names; kernels move pairs as words.
template <class T>
struct PairOf;

template <>
struct PairOf<__half> {
  using Type = __half2;
  static __device__ Type make(float x, float y) { return __floats2half2_rn(x, y); }
  static __device__ float2 widen(Type v) { return __half22float2(v); }
  static __device__ __half from(float v) { return __float2half_rn(v); }
};

template <>
struct PairOf<__nv_bfloat16> {
  using Type = __nv_bfloat162;
  static __device__ Type make(float x, float y) { return __floats2bfloat162_rn(x, y); }
  static __device__ float2 widen(Type v) { return __bfloat1622float2(v); }
  static __device__ __nv_bfloat16 from(float v) { return __float2bfloat16_rn(v); }
};

template <class T>
struct Numeric {
  using Two = PairOf<T>;
  using Pair = uint32_t;
  using Quad = uint2;
  struct Norm {
    uint2 scale, shift;
  };
  static __device__ Pair word(typename Two::Type v) {
    Pair bits;
    memcpy(&bits, &v, sizeof(bits));
    return bits;
  }
  static __device__ typename Two::Type pair(Pair bits) {
    typename Two::Type v;
    memcpy(static_cast<void*>(&v), &bits, sizeof(bits));
    return v;
  }
  static __device__ Pair pack(float x, float y) { return word(Two::make(x, y)); }
  static __device__ float2 unpack(Pair v) { return Two::widen(pair(v)); }
  static __device__ T from(float v) { return Two::from(v); }
  static __device__ Pair fma_relu(Pair s, Pair x, Pair t) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return word(__hfma2_relu(pair(s), pair(x), pair(t)));
#else
    const float2 a = unpack(s), b = unpack(x), c = unpack(t);
    return pack(relu(fmaf(a.x, b.x, c.x)), relu(fmaf(a.y, b.y, c.y)));
#endif
  }
  static __device__ Quad normalise(Quad x, const Norm& n) {
    return {fma_relu(n.scale.x, x.x, n.shift.x), fma_relu(n.scale.y, x.y, n.shift.y)};
  }
  static __device__ float4 widen(Quad v) {
    const float2 a = unpack(v.x), b = unpack(v.y);
    return {a.x, a.y, b.x, b.y};
  }
  static __device__ Quad narrow(float4 v) { return {pack(v.x, v.y), pack(v.z, v.w)}; }
};

template <>
struct Numeric<float> {
  using Pair = float2;
  using Quad = float4;
  struct Norm {
    float4 scale, shift;
  };
  static __device__ Pair pack(float x, float y) { return {x, y}; }
  static __device__ float2 unpack(Pair v) { return v; }
  static __device__ float4 widen(Quad v) { return v; }
  static __device__ Quad narrow(float4 v) { return v; }
  static __device__ float from(float v) { return v; }
  static __device__ Quad normalise(Quad x, const Norm& n) {
    return {relu(fmaf(n.scale.x, x.x, n.shift.x)), relu(fmaf(n.scale.y, x.y, n.shift.y)),
            relu(fmaf(n.scale.z, x.z, n.shift.z)), relu(fmaf(n.scale.w, x.w, n.shift.w))};
  }
};

template <class T>
using Quad = typename Numeric<T>::Quad;

// Four consecutive channels, aligned to their size.
template <class T>
__device__ inline Quad<T> load_quad(const void* base, int64_t element) {
  return *reinterpret_cast<const Quad<T>*>(static_cast<const T*>(base) + element);
}
template <class T>
__device__ inline void store_quad(void* base, int64_t element, Quad<T> value) {
  *reinterpret_cast<Quad<T>*>(static_cast<T*>(base) + element) = value;
}
template <class T>
__device__ inline void store_pair(void* base, int64_t element, float x, float y) {
  *reinterpret_cast<typename Numeric<T>::Pair*>(static_cast<T*>(base) + element) = Numeric<T>::pack(x, y);
}
template <class T>
__device__ inline float2 load_pair(const void* base, int64_t element) {
  return Numeric<T>::unpack(*reinterpret_cast<const typename Numeric<T>::Pair*>(static_cast<const T*>(base) + element));
}

// Four channels of a pixel from channel `first` on, zero where they are not among the `count` that are read.
template <class T>
__device__ inline float4 load_channels(const T* pixel, int first, int count, int src_offset) {
  if (first % kGroup == 0 && src_offset % kGroup == 0 && first >= 0 && first + kGroup <= count)
    return Numeric<T>::widen(load_quad<T>(pixel, src_offset + first));
  float v[kGroup];
#pragma unroll
  for (int i = 0; i < kGroup; ++i)
    v[i] = first + i >= 0 && first + i < count ? static_cast<float>(pixel[src_offset + first + i]) : 0.f;
  return {v[0], v[1], v[2], v[3]};
}

// relu(scale x + shift) in float32: [group][scale of 4, shift of 4]
__device__ inline float4 normalise_wide(float4 x, const float* norm, int group) {
  const float4* n = reinterpret_cast<const float4*>(norm) + 2 * group;
  return Numeric<float>::normalise(x, {n[0], n[1]});
}

// Images and maps of the caller are float32 or the kernels' element.
template <class T>
__device__ inline float load_value(const void* base, bool is_float, int64_t i) {
  return is_float ? static_cast<const float*>(base)[i] : static_cast<float>(static_cast<const T*>(base)[i]);
}
template <class T>
__device__ inline void store_value(void* base, bool is_float, int64_t i, float v) {
  if (is_float) {
    static_cast<float*>(base)[i] = v;
  } else {
    static_cast<T*>(base)[i] = Numeric<T>::from(v);
  }
}

}  // namespace dsn::cuda
