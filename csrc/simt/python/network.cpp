// Whole plans on the host runner: the launches of csrc/cuda/network.cuh.
#include <pybind11/stl.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/network.h"
#include "cuda/refusals.h"
#include "simt/options.h"
#include "simt/python.h"
#include "simt/streams.h"

// The runner's module links nothing of the shipped library.
#include "cuda/bottleneck_runs.cpp"
#include "cuda/channel_lists.cpp"
#include "cuda/conv2d_tile.cpp"
#include "cuda/gate_chains.cpp"
#include "cuda/gradual_runs.cpp"
#include "cuda/schedule.cpp"
#include "cuda/stage_runs.cpp"
#include "plan/plan.cpp"

namespace {

using namespace dsn;
using dsn::simt::Array;

// The runner's streams. `forgotten` numbers a wait that is left out, to test that it is missed; `alone`: all of the
// plan's streams are the caller's, as in a capture by a thread that has made none.
class HostStreams : public cuda::Streams {
 public:
  HostStreams(int streams, int forgotten, bool alone) : set(streams), forgotten_(forgotten), alone_(alone) {}
  int open(int) override { return 0; }
  CUstream_st* get(int stream) override { return reinterpret_cast<CUstream_st*>(set.get(own(stream))); }
  int mark(int stream, int* event) override {
    *event = set.mark(own(stream));
    return 0;
  }
  int wait(int stream, int event) override {
    if (waits_++ != forgotten_) set.wait(own(stream), event);
    return 0;
  }

  simt::StreamSet set;

 private:
  int own(int stream) const { return alone_ ? 0 : stream; }

  int forgotten_, waits_ = 0;
  bool alone_;
};

class Network {
 public:
  Network(const std::vector<int64_t>& words, int64_t element, int64_t batch, int multiprocessors, int shared_bytes,
          bool clusters, double l2_rate)
      : plan_("network", words.data(), static_cast<int64_t>(words.size())),
        element_(static_cast<cuda::Element>(element)),
        batch_(batch),
        schedule_("network", plan_, element_, batch,
                  {.multiprocessors = multiprocessors,
                   .shared_bytes = shared_bytes,
                   .cluster = clusters ? cuda::kLargestCluster : 1,
                   .l2_rate = l2_rate}) {}

  // Returns the launches in the order in which they ran: (stream, kernel).
  std::vector<std::pair<int, std::string>> run(const Array& image, bool image_is_float, const Array& weights,
                                               const Array& thresholds, const Array* forced, const Array* count,
                                               const Array& logits, const Array& taken, const Array& scores,
                                               const Array& macs, const Array& map, const Array& workspace,
                                               int forgotten, bool alone) {
    if (weights.size() < schedule_.weight_bytes || workspace.size() < schedule_.workspace_bytes)
      throw std::runtime_error("network: weights or workspace are too small");
    if (!forced && !schedule_.listed_first.empty())
      throw std::runtime_error("network: forced gates must say which filters run");
    cuda::NetworkCall call;
    call.image = image.data<void>();
    call.image_is_float = image_is_float;
    call.weights = weights.data<unsigned char>();
    call.thresholds = thresholds.data<float>();
    call.forced = forced ? forced->data<uint8_t>() : nullptr;
    call.count = count ? count->data<int32_t>() : nullptr;
    call.logits = logits.data<float>();
    call.taken = taken.data<uint8_t>();
    call.score = scores.data<float>();
    call.macs = macs.data<unsigned long long>();
    call.map = map.data<void>();
    call.workspace = workspace.data<unsigned char>();
    call.batch = batch_;
    HostStreams streams(stream_count(), forgotten, alone);
    streams.set.call(0, "memset", [&] { std::memset(call.workspace, 0, schedule_.zero_bytes); });
    start(call, streams);
    return streams.set.play(simt::options().seed);
  }

  // What each stream is given: (kernel, blocks, threads, shared bytes, event waited for, event marked), without a run.
  std::vector<std::vector<std::tuple<std::string, int64_t, int, int, int, int>>> timeline() {
    static unsigned char nowhere[1];  // pointers are computed from these and never followed
    cuda::NetworkCall call;
    call.image = call.weights = call.workspace = call.taken = nowhere;
    call.thresholds = call.logits = call.score = reinterpret_cast<float*>(nowhere);
    call.macs = reinterpret_cast<unsigned long long*>(nowhere);
    call.map = nowhere;
    call.batch = batch_;
    HostStreams streams(stream_count(), -1, false);
    start(call, streams);
    std::vector<std::vector<std::tuple<std::string, int64_t, int, int, int, int>>> all;
    for (int s = 0; s < stream_count(); ++s) {
      all.emplace_back();
      for (const simt::Work& w : streams.set.get(s)->work)
        all.back().emplace_back(w.name, w.blocks, w.threads, w.shared_bytes, w.waits_for, w.marks);
    }
    return all;
  }

  bool grouped() const { return schedule_.grouped; }
  int64_t workspace_bytes() const { return schedule_.workspace_bytes; }
  const std::vector<int>& stream_of_buffer() const { return plan_.stream_of; }
  // (rows, columns, down, across, block_columns, column_blocks, warp_tiles, warps_down, depth, resident, walk,
  // scattered, slots, split, old_stride, pack) of each convolution
  std::vector<std::array<int, 16>> conv_tiles() const {
    std::vector<std::array<int, 16>> all;
    for (const auto& step : schedule_.convs)
      if (const cuda::ConvTile& t = step.tile; t.rows)
        all.push_back({t.rows, t.columns, t.down, t.across, t.block_columns, t.column_blocks, t.warp_tiles,
                       t.warps_down, t.depth, t.resident, step.walk, step.scattered, t.slots, t.split, t.old_stride,
                       t.pack});
    return all;
  }
  // (first instruction, one past the last, rows, blocks of a cluster, shared_bytes) of each gradual layer
  std::vector<std::array<int, 5>> gradual_runs() const {
    std::vector<std::array<int, 5>> all;
    for (const cuda::GradualRun& r : schedule_.gradual)
      all.push_back({r.begin, r.end, r.rows, r.blocks, r.shared_bytes});
    return all;
  }
  // (first instruction, one past the last, rows, blocks of a cluster, shared_bytes) of each run of bottleneck units
  std::vector<std::array<int, 5>> bottleneck_runs() const {
    std::vector<std::array<int, 5>> all;
    for (const cuda::BottleneckRun& r : schedule_.bottlenecks)
      all.push_back({r.begin, r.end, r.cut.rows, r.cut.blocks, r.cut.shared_bytes});
    return all;
  }
  // (first instruction, one past the last, (buffer, units, rows, down, across, tiles of a warp, split) of each map) of
  // each run of residual units
  std::vector<std::tuple<int, int, std::vector<std::array<int, 7>>>> stage_runs() const {
    std::vector<std::tuple<int, int, std::vector<std::array<int, 7>>>> all;
    for (const cuda::StageRun& r : schedule_.stages) {
      auto& maps = std::get<2>(all.emplace_back(r.begin, r.end, std::vector<std::array<int, 7>>{}));
      for (const auto& [buffer, units, c] : r.maps)
        maps.push_back(
            {static_cast<int>(buffer), static_cast<int>(units.size()), c.rows, c.down, c.across, c.tiles, c.split});
    }
    return all;
  }
  // (rows, columns, down, across, resident, mid_stride, shared_bytes) of each layer of each dense block
  std::vector<std::array<int, 7>> tiles() const {
    std::vector<std::array<int, 7>> all;
    for (const auto& block : schedule_.tiles)
      for (const cuda::LayerTile& t : block)
        all.push_back({t.rows, t.columns, t.down, t.across, t.resident, t.mid_stride, t.shared_bytes});
    return all;
  }

 private:
  void start(const cuda::NetworkCall& call, cuda::Streams& streams) {
    int error = 0;
    switch (element_) {
      case cuda::Element::kFloat:
        error = cuda::run_network_as<float>(plan_, schedule_, call, streams);
        break;
      case cuda::Element::kHalf:
        error = cuda::run_network_as<__half>(plan_, schedule_, call, streams);
        break;
      case cuda::Element::kBfloat16:
        error = cuda::run_network_as<__nv_bfloat16>(plan_, schedule_, call, streams);
        break;
    }
    simt::check(static_cast<cudaError_t>(error));
  }

  int stream_count() const { return static_cast<int>(plan_.streams.size()); }

  Plan plan_;
  cuda::Element element_;
  int64_t batch_;
  cuda::Schedule schedule_;
};

}  // namespace

DSN_SIMT_BINDINGS(network) {
  m.def("refuse_device", [](int device, int arch, bool has_code, int64_t element) {
    return cuda::refuse_device(device, arch, has_code, static_cast<cuda::Element>(element));
  });
  m.def("no_memory", &cuda::no_memory);
  m.def("machine_of", [](int multiprocessors, double peak_clock) {
    const auto machine = cuda::Machine::of(multiprocessors, 0, 1, peak_clock);
    return std::pair(machine.clock, machine.l2_rate);
  });
  m.def("refuse_place", &cuda::refuse_place);
  py::class_<Network>(m, "Network")
      .def(py::init<const std::vector<int64_t>&, int64_t, int64_t, int, int, bool, double>(), py::arg("words"),
           py::arg("element"), py::arg("batch"), py::arg("multiprocessors"), py::arg("shared_bytes"),
           py::arg("clusters") = true, py::arg("l2_rate") = cuda::Machine{}.l2_rate)
      .def("run", &Network::run, py::arg("image"), py::arg("image_is_float"), py::arg("weights"), py::arg("thresholds"),
           py::arg("forced").none(true), py::arg("count").none(true), py::arg("logits"), py::arg("taken"),
           py::arg("scores"), py::arg("macs"), py::arg("map"), py::arg("workspace"), py::arg("forgotten_wait") = -1,
           py::arg("one_stream") = false)
      .def_property_readonly("workspace_bytes", &Network::workspace_bytes)
      .def_property_readonly("grouped", &Network::grouped)
      .def_property_readonly("gradual_runs", &Network::gradual_runs)
      .def_property_readonly("stage_runs", &Network::stage_runs)
      .def_property_readonly("bottleneck_runs", &Network::bottleneck_runs)
      .def_property_readonly("conv_tiles", &Network::conv_tiles)
      .def("timeline", &Network::timeline)
      .def_property_readonly("stream_of_buffer", &Network::stream_of_buffer)
      .def_property_readonly("tiles", &Network::tiles);
}
