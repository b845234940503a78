// Streams and events of the device: what is put into them runs when they are played, in one of the orders that they
// allow. A wait that is missing so shows as a wrong answer or as a read of what nobody has written.
#pragma once

#include <deque>
#include <functional>
#include <string>

#include "simt/runtime.h"

namespace dsn::simt {

// What a stream holds: a launch, a call, an event to mark or one to wait for.
struct Work {
  std::string name;
  int waits_for = -1;
  int marks = -1;
  int64_t blocks = 0;  // of a launch
  int threads = 0, shared_bytes = 0;
  std::function<void()> run = {};  // throws Error
};

class Stream {
 public:
  explicit Stream(int number) : number(number) {}
  Stream(const Stream&) = delete;
  ~Stream();

  const int number;
  std::deque<Work> work;
};

class StreamSet {
 public:
  explicit StreamSet(int streams);

  Stream* get(int stream) { return &streams_[stream]; }
  void call(int stream, std::string name, std::function<void()> run);
  int mark(int stream);  // the event
  void wait(int stream, int event);

  // Runs everything. By `seed`: 0 stream 0 as far as it goes before others get on, 1 the last stream so, else at
  // random. Returns what ran, as (stream, name), in order. Throws Error, also if stream 0 has ended before another has:
  // the caller goes on when stream 0 does.
  std::vector<std::pair<int, std::string>> play(uint64_t seed);

 private:
  bool ready(const Stream& stream) const;

  std::deque<Stream> streams_;
  std::vector<bool> events_;  // that have passed
};

}  // namespace dsn::simt
