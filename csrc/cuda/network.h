// A network on the GPU: a sequence of launches that is the same for every gate pattern. Plain C++.
#pragma once

#include "cuda/schedule.h"

struct CUstream_st;

namespace dsn::cuda {

// What a call reads and writes; all pointers are the device's.
struct NetworkCall {
  const void* image = nullptr;  // [B][C][H][W], float32 or the element
  bool image_is_float = true;
  const unsigned char* weights = nullptr;
  const float* thresholds = nullptr;   // [gates]
  const uint8_t* forced = nullptr;     // [B][gates] or null
  const int32_t* count = nullptr;      // [1] or null: samples of the batch that are real
  float* logits = nullptr;             // [B][logits]
  uint8_t* taken = nullptr;            // [B][gates]
  float* score = nullptr;              // [B][gates]
  unsigned long long* macs = nullptr;  // [B], zero
  void* map = nullptr;                 // [B][C][H][W] of the store instruction, of the image's type
  unsigned char* workspace = nullptr;  // the schedule's, its first zero_bytes zero
  int64_t batch = 0;
};

// The streams that the plan's streams run on, and what orders them. Each call returns a cudaError_t.
class Streams {
 public:
  virtual ~Streams() = default;
  virtual int open(int streams) = 0;  // before all other calls: these will be used, 0 is the caller's
  virtual CUstream_st* get(int stream) = 0;
  virtual int mark(int stream, int* event) = 0;  // the stream's work so far
  virtual int wait(int stream, int event) = 0;   // what comes next in the stream follows the marked work
};

// Starts the launches of `plan` without waiting for any of them; returns the first error, a cudaError_t. All of it lies
// between what stream 0 held before and what it is given next.
int run_network(const Plan& plan, const Schedule& schedule, Element element, const NetworkCall& call, Streams& streams);

template <class T>
int run_network_as(const Plan& plan, const Schedule& schedule, const NetworkCall& call, Streams& streams);

}  // namespace dsn::cuda
