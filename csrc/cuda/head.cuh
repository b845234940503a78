// head: BN-ReLU-GAP-linear over the live channels, a block per sample. path_head: the same with features that the path
// through the network scales and shifts.
#pragma once

#include "cuda/dense_layer.cuh"

namespace dsn::cuda {

// Features of a state's live groups, [group][4] where `place` has the group.
template <class T, class Place>
__device__ inline void pool_features(const HeadParams& p, const GroupRef* groups, const Live& live, const T* state,
                                     float* features, Place place) {
  const int lane = threadIdx.x % 32;
  const float pixels = p.source.pixels;
  for (int i = threadIdx.x / 32; i < live.groups; i += kWarps) {
    const GroupRef ref = groups[i];
    if (ref.id < 0) continue;
    float4 total = {};
    for (int pixel = lane; pixel < p.source.pixels; pixel += 32) {
      const float4 v =
          normalise_wide(Numeric<T>::widen(load_quad<T>(state + ref.offset,
                                                        static_cast<int64_t>(pixel) * pixel_stride(p.source, ref.id))),
                         p.norm, ref.id);
      total.x += v.x, total.y += v.y, total.z += v.z, total.w += v.w;
    }
    total = {warp_sum(total.x), warp_sum(total.y), warp_sum(total.z), warp_sum(total.w)};
    if (lane == 0)
      reinterpret_cast<float4*>(features)[place(i, ref.id)] = {total.x / pixels, total.y / pixels, total.z / pixels,
                                                               total.w / pixels};
  }
}

// Pools the live channels of a map, whose features lie side by side, and marks these channels in `masks`.
template <class T>
__device__ inline void pool_listed(const HeadParams& p, const uint16_t* list, int count, const T* map, float* features,
                                   unsigned* masks) {
  for (int i = threadIdx.x; i < (p.channels + 31) / 32; i += blockDim.x) masks[i] = 0;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  for (int i = threadIdx.x / 32; i < count; i += kWarps) {
    const int c = list[i], at = c / kGroup * 2 * kGroup + c % kGroup;
    const float scale = p.norm[at], shift = p.norm[at + kGroup];
    float total = 0;
    for (int pixel = lane; pixel < p.source.pixels; pixel += 32)
      total += relu(fmaf(
          scale, static_cast<float>(map[static_cast<int64_t>(pixel) * p.source.first_groups * kGroup + c]), shift));
    total = warp_sum(total);
    if (lane == 0) {
      features[i] = total / static_cast<float>(p.source.pixels);
      atomicOr(masks + c / 32, 1u << (c % 32));
    }
  }
}

// Scales and shifts all features, those of channels without data included, as the open gates say.
template <class T>
__device__ inline void shape_by_path(const HeadParams& p, const GroupRef* groups, const Live& live, const T* state,
                                     int sample, float* features) {
  const int places = p.total_groups * kGroup;
  for (int i = threadIdx.x; i < places; i += blockDim.x)
    features[i] = relu(p.norm[i / kGroup * 2 * kGroup + kGroup + i % kGroup]);
  __syncthreads();
  pool_features<T>(p, groups, live, state, features, [](int, int id) { return id; });
  __syncthreads();
  const uint8_t* taken = p.taken + static_cast<int64_t>(sample) * p.gates;
  for (int i = threadIdx.x; i < places; i += blockDim.x) {
    float gamma = p.path_bias[i], beta = p.path_bias[places + i];
    for (int l = 0; l < p.path_gates; ++l) {
      if (!taken[l]) continue;
      const float* column = p.path + static_cast<int64_t>(l) * 2 * places;
      gamma += column[i], beta += column[places + i];
    }
    features[i] = fmaf(1 + gamma, features[i], beta);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kLeastBlocks) head_kernel(const __grid_constant__ HeadParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  unsigned* masks = shared_memory<unsigned>(p.at_masks);
  GroupRef* groups = shared_memory<GroupRef>(p.at_groups);
  float* features = shared_memory<float>(p.at_features);  // of what is live; of all with a path
  if (!begin_block(p.samples, p.source, 1, groups, masks)) return;
  BlockHeader* header = shared_memory<BlockHeader>();
  const int sample = header->sample, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Live live = header->live;
  const Source& s = p.source;
  const T* state = static_cast<const T*>(s.data) + state_offset(s, sample, live.taken);
  const uint16_t* list = nullptr;
  int count = live.channels;
  if (p.inputs.list) {
    list = p.inputs.list + static_cast<int64_t>(sample) * p.inputs.list_stride;
    count = p.inputs.count[static_cast<int64_t>(sample) * p.inputs.count_stride];
  }
  if (list)
    pool_listed<T>(p, list, count, state, features, masks);
  else if (p.path)
    shape_by_path<T>(p, groups, live, state, sample, features);
  else
    pool_features<T>(p, groups, live, state, features, [](int i, int) { return i; });
  __syncthreads();
  for (int k = warp; k < p.classes; k += kWarps) {
    const float* row = p.weight + static_cast<int64_t>(k) * p.total_groups * kGroup;
    float logit = 0;
    if (list)
      for (int i = lane; i < count; i += 32) logit = fmaf(row[list[i]], features[i], logit);
    for (int i = lane; !list && i < (p.path ? p.total_groups : live.groups); i += 32) {
      const int id = p.path ? i : groups[i].id;
      if (id < 0) continue;
      const float4 x = reinterpret_cast<const float4*>(features)[i], w = reinterpret_cast<const float4*>(row)[id];
      logit = fmaf(w.x, x.x, fmaf(w.y, x.y, fmaf(w.z, x.z, fmaf(w.w, x.w, logit))));
    }
    const int slices = list ? p.channels : s.slice_groups && !p.path ? s.slices : 0;
    for (int slice = lane; slice < slices; slice += 32)
      if (!slice_is_live(masks, slice)) logit += p.constants[static_cast<int64_t>(slice) * p.classes + k];
    logit = warp_sum(logit);
    if (lane == 0) p.logits[sample * p.row + k] = logit + p.bias[k];
  }
  const int each = p.path ? p.channels * (p.classes + 1) : count * p.classes;
  if (threadIdx.x == 0) atomicAdd(p.macs + sample, static_cast<unsigned long long>(each));
}

}  // namespace dsn::cuda
