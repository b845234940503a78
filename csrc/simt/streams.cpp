#include "simt/streams.h"

#include <random>

namespace dsn::simt {

void forget_stream(const Stream* stream);  // runtime.cpp

Stream::~Stream() { forget_stream(this); }

cudaError_t enqueue(Stream* stream, const Launch& launch) {
  if (const cudaError_t refused = refusal(launch); refused != cudaSuccess) return refused;
  Work work{std::string(launch.kernel)};
  work.blocks = int64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  work.threads = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
  work.shared_bytes = launch.shared_bytes;
  const auto* bytes = static_cast<const unsigned char*>(launch.params);
  work.run = [launch, params = std::vector<unsigned char>(bytes, bytes + launch.params_bytes)] {
    Launch own = launch;  // operator new aligns for any type
    own.params = params.data();
    // As a graph's node is refused when it is replayed, if its kernel's limits have changed since.
    if (const cudaError_t refused = simt::run(own); refused != cudaSuccess)
      throw Error(std::string(own.kernel) + " was put into a stream and is refused now: error " +
                  std::to_string(refused));
  };
  stream->work.push_back(std::move(work));
  return cudaSuccess;
}

StreamSet::StreamSet(int streams) {
  for (int s = 0; s < streams; ++s) streams_.emplace_back(s);
}

void StreamSet::call(int stream, std::string name, std::function<void()> run) {
  Work work{std::move(name)};
  work.run = std::move(run);
  streams_[stream].work.push_back(std::move(work));
}

int StreamSet::mark(int stream) {
  events_.push_back(false);
  const int event = static_cast<int>(events_.size()) - 1;
  streams_[stream].work.push_back({"mark", -1, event});
  return event;
}

void StreamSet::wait(int stream, int event) { streams_[stream].work.push_back({"wait", event, -1}); }

bool StreamSet::ready(const Stream& stream) const {
  if (stream.work.empty()) return false;
  const int event = stream.work.front().waits_for;
  return event < 0 || events_[event];
}

std::vector<std::pair<int, std::string>> StreamSet::play(uint64_t seed) {
  std::vector<std::pair<int, std::string>> ran;
  std::mt19937_64 random(seed);
  while (!streams_[0].work.empty()) {
    std::vector<Stream*> able;
    for (Stream& stream : streams_)
      if (ready(stream)) able.push_back(&stream);
    if (able.empty()) throw Error("streams wait for events that never come");
    Stream& stream = *(seed == 0 ? able.front() : seed == 1 ? able.back() : able[random() % able.size()]);
    const Work work = std::move(stream.work.front());
    stream.work.pop_front();
    if (work.marks >= 0) events_[work.marks] = true;
    if (!work.run) continue;
    work.run();
    ran.emplace_back(stream.number, work.name);
  }
  for (const Stream& stream : streams_)
    if (!stream.work.empty())
      throw Error("stream 0 has ended and stream " + std::to_string(stream.number) + " has not: nothing joins it");
  return ran;
}

}  // namespace dsn::simt
