#include <dlfcn.h>
#include <execinfo.h>

#include <cstdio>
#include <memory>
#include <sstream>

#include "simt/engine.h"

namespace dsn::simt {
namespace {

bool is_library(const std::string& line) {
  for (const char* part :
       {"csrc/simt/", "cuda/ptx", "cuda/device.cuh", "cuda_fp16", "cuda_bf16", "/include/c++/", "??"}) {
    if (line.find(part) != line.npos) return true;
  }
  return false;
}

// Asks addr2line, which comes with the compiler; inlined frames innermost first. Slow, and only for messages.
std::string lookup(const std::vector<uintptr_t>& addresses) {
  Dl_info module;
  if (addresses.empty() || !dladdr(reinterpret_cast<void*>(&lookup), &module)) return "unknown line";
  std::ostringstream command;
  command << "addr2line -i -e '" << module.dli_fname << "'" << std::hex;
  for (uintptr_t address : addresses) {
    command << " 0x" << address - 1 - reinterpret_cast<uintptr_t>(module.dli_fbase);
  }
  command << " 2>/dev/null";
  std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.str().c_str(), "r"), pclose);
  char buffer[4096];
  std::string first;
  while (pipe && fgets(buffer, sizeof(buffer), pipe.get())) {
    std::string line(buffer);
    line.erase(line.find_last_not_of("\n") + 1);
    line.erase(std::min(line.find(" (discriminator"), line.size()));
    if (line.rfind('/') != line.npos && !is_library(line)) return line.substr(line.rfind('/') + 1);
    if (first.empty()) first = line;
  }
  return first.empty() ? "unknown line" : first.substr(first.rfind('/') + 1);
}

}  // namespace

std::string source_line(uintptr_t pc) { return lookup({pc}); }

std::string source_line_of_caller(uintptr_t pc) {
  void* frames[32];
  const int found = backtrace(frames, 32);
  std::vector<uintptr_t> addresses = {pc};
  bool reached = false;
  for (int i = 0; i < found; ++i) {
    const auto frame = reinterpret_cast<uintptr_t>(frames[i]);
    if (reached) addresses.push_back(frame);
    reached |= frame == pc;
  }
  return lookup(addresses);
}

}  // namespace dsn::simt
