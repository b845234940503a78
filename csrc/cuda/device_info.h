// What the CUDA runtime says about this machine. Plain C++: no CUDA and no torch header, so library.cpp includes it on
// any build that defines DSN_WITH_CUDA.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dsn::cuda {

struct RuntimeInfo {
  int runtime_version = 0;  // 13000 is CUDA 13.0; linked statically
  int driver_version = 0;   // newest CUDA the driver serves; 0 without a driver
  std::string error;        // why no device is usable; empty if one is
};

struct DeviceInfo {
  std::string name;
  int major = 0;  // compute capability
  int minor = 0;
  int multiprocessors = 0;
  int64_t memory_bytes = 0;
  int kernel_arch = 0;  // __CUDA_ARCH__ of the code that ran here, 900 for sm_90; 0 if none of the built ones runs
  std::string error;    // why the probe kernel did not run; empty if it did
};

// Never throws. Initialises the driver, which a process must not do before it forks: call it on demand, not on import.
RuntimeInfo runtime();

// Every visible device; empty without a driver. Runs a one-thread kernel on each, which creates its context (some
// hundred milliseconds and megabytes).
std::vector<DeviceInfo> devices();

}  // namespace dsn::cuda
