#include "cuda/runtime.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "cuda/device_info.cuh"
#include "cuda/refusals.h"

namespace dsn::cuda {
namespace {

std::string message(cudaError_t status) {
  if (status == cudaSuccess) return "";
  cudaGetLastError();  // leaves nothing behind for the caller's next launch
  return cudaGetErrorString(status);
}

struct Facts {
  std::string error;
  int arch = 0;
  bool has_code = false;
  Machine machine;
};

// Blocks of a cluster, each with a multiprocessor's shared memory to itself, that the device can run: fewer than usual
// where it is a slice of one. Where it does not say, what devices with clusters promise.
int largest_cluster(int shared_bytes) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(kLargestCluster);
  config.blockDim = dim3(1);
  int blocks = 1;
  cudaError_t status = cudaFuncSetAttribute(probe_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  if (status == cudaSuccess) status = cudaOccupancyMaxPotentialClusterSize(&blocks, probe_kernel, &config);
  cudaGetLastError();
  return status == cudaSuccess ? std::clamp(blocks, 1, kLargestCluster) : kLargestCluster;
}

Facts find_facts(int device) {
  Facts facts;
  int major = 0, minor = 0, multiprocessors = 0, shared_bytes = 0, kilohertz = 0;
  const std::pair<int*, cudaDeviceAttr> asked[] = {{&major, cudaDevAttrComputeCapabilityMajor},
                                                   {&minor, cudaDevAttrComputeCapabilityMinor},
                                                   {&multiprocessors, cudaDevAttrMultiProcessorCount},
                                                   {&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin},
                                                   {&kilohertz, cudaDevAttrClockRate}};
  cudaError_t status = cudaSuccess;
  for (const auto& [answer, attribute] : asked)
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(answer, attribute, device);
  facts.arch = 10 * major + minor;
  cudaFuncAttributes attributes;
  if (status == cudaSuccess) {
    facts.has_code = cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess;
    cudaGetLastError();
  }
  const int cluster = facts.has_code && major >= 9 ? largest_cluster(shared_bytes) : 1;
  facts.machine = Machine::of(multiprocessors, shared_bytes, cluster, 1e3 * kilohertz);
  facts.error = message(status);
  return facts;
}

// Streams of this thread alone: a capture in one thread never meets work of another.
class ThreadStreams : public Streams {
 public:
  ThreadStreams(int device, cudaStream_t main) : device_(device), streams_{main} {}
  ~ThreadStreams() override {
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
  }

  // A thread's first call makes its streams. Where that is in a capture, in which none is to be made, the plan's
  // streams are one behind the other in the caller's.
  int open(int streams) override {
    thread_local std::map<std::pair<int, int>, cudaStream_t> beside;
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    if (streams > 1)
      if (const cudaError_t status = cudaStreamIsCapturing(streams_[0], &capture)) return status;
    for (int s = 1; s < streams; ++s) {
      cudaStream_t found = beside[{device_, s}];
      if (!found && capture == cudaStreamCaptureStatusNone) {
        if (const cudaError_t status = cudaStreamCreateWithFlags(&found, cudaStreamNonBlocking)) return status;
        beside[{device_, s}] = found;
      }
      streams_.push_back(found ? found : streams_[0]);
    }
    return cudaSuccess;
  }

  CUstream_st* get(int stream) override { return streams_[stream]; }

  int mark(int stream, int* event) override {
    cudaEvent_t made = nullptr;
    if (const cudaError_t status = cudaEventCreateWithFlags(&made, cudaEventDisableTiming)) return status;
    *event = static_cast<int>(events_.size());
    events_.push_back(made);
    return cudaEventRecord(made, get(stream));
  }

  int wait(int stream, int event) override { return cudaStreamWaitEvent(get(stream), events_[event], 0); }

 private:
  int device_;
  std::vector<cudaStream_t> streams_;
  std::vector<cudaEvent_t> events_;
};

}  // namespace

std::string probe_device(int device, Element element, Machine* machine) {
  static std::mutex mutex;
  static auto* known = new std::map<int, Facts>;
  std::lock_guard lock(mutex);
  auto found = known->find(device);
  if (found == known->end()) found = known->emplace(device, find_facts(device)).first;
  const Facts& facts = found->second;
  *machine = facts.machine;
  return facts.error.empty() ? refuse_device(device, facts.arch, facts.has_code, element) : facts.error;
}

std::unique_ptr<Streams> make_streams(int device, CUstream_st* main) {
  return std::make_unique<ThreadStreams>(device, main);
}

std::string error_text(int status) { return message(static_cast<cudaError_t>(status)); }

std::string zero_memory(void* memory, int64_t bytes, CUstream_st* stream) {
  return message(cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream));
}

int run_network(const Plan& plan, const Schedule& schedule, Element element, const NetworkCall& call,
                Streams& streams) {
  switch (element) {
    case Element::kFloat:
      return run_network_as<float>(plan, schedule, call, streams);
    case Element::kHalf:
      return run_network_as<__half>(plan, schedule, call, streams);
    case Element::kBfloat16:
      return run_network_as<__nv_bfloat16>(plan, schedule, call, streams);
  }
  return cudaErrorInvalidValue;
}

}  // namespace dsn::cuda
