// How anything is refused; no torch header, so that the host runner has it too.
#pragma once

#include <sstream>
#include <stdexcept>

namespace dsn {

// Throws what Python sees as a RuntimeError of one line; torch's own macro would put our source file before it.
template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace dsn
