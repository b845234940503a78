// head: BN-ReLU-GAP-linear over the live channels, a block per sample.
#pragma once

#include "cuda/dense_layer.cuh"

namespace dsn::cuda {

template <class T>
__global__ void __launch_bounds__(kThreads) head_kernel(const __grid_constant__ HeadParams p) {
  ptx::grid_dependency_wait();
  ptx::grid_launch_dependents();
  unsigned* masks = shared_memory<unsigned>(p.at_masks);
  GroupRef* groups = shared_memory<GroupRef>(p.at_groups);
  float* features = shared_memory<float>(p.at_features);  // of the live groups
  if (!begin_block(p.samples, p.source, 1, groups, masks)) return;
  BlockHeader* header = shared_memory<BlockHeader>();
  const int sample = header->sample, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Live live = header->live;
  const Source& s = p.source;
  const T* state = static_cast<const T*>(s.data) + state_offset(s, sample, live.taken);
  for (int i = warp; i < live.groups; i += kWarps) {
    const GroupRef ref = groups[i];
    float4 total = {};
    if (ref.id >= 0)
      for (int pixel = lane; pixel < s.pixels; pixel += 32) {
        const float4 v = normalise_wide(
            Numeric<T>::widen(load_quad<T>(state + ref.offset, static_cast<int64_t>(pixel) * pixel_stride(s, ref.id))),
            p.norm, ref.id);
        total.x += v.x, total.y += v.y, total.z += v.z, total.w += v.w;
      }
    total = {warp_sum(total.x), warp_sum(total.y), warp_sum(total.z), warp_sum(total.w)};
    const float pixels = s.pixels;
    if (lane == 0)
      reinterpret_cast<float4*>(features)[i] = {total.x / pixels, total.y / pixels, total.z / pixels, total.w / pixels};
  }
  __syncthreads();
  for (int k = warp; k < p.classes; k += kWarps) {
    float logit = 0;
    for (int i = lane; i < live.groups; i += 32) {
      const int id = groups[i].id;
      if (id < 0) continue;
      const float4 x = reinterpret_cast<const float4*>(features)[i];
      const float4 w = reinterpret_cast<const float4*>(p.weight)[static_cast<int64_t>(k) * p.total_groups + id];
      logit = fmaf(w.x, x.x, fmaf(w.y, x.y, fmaf(w.z, x.z, fmaf(w.w, x.w, logit))));
    }
    for (int slice = lane; s.slice_groups && slice < s.slices; slice += 32)
      if (!slice_is_live(masks, slice)) logit += p.constants[slice * p.classes + k];
    logit = warp_sum(logit);
    if (lane == 0) p.logits[sample * p.row + k] = logit + p.bias[k];
  }
  if (threadIdx.x == 0) atomicAdd(p.macs + sample, static_cast<unsigned long long>(live.channels) * p.classes);
}

}  // namespace dsn::cuda
