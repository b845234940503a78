// Whole plans on the host runner: the launches of csrc/cuda/network.cuh.
#include <pybind11/stl.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/network.h"
#include "simt/python.h"

#include "cuda/schedule.cpp"  // the runner's module links nothing of the shipped library

namespace {

using namespace dsn;
using dsn::simt::Array;

// Launches run to their end one after another, so one stream is all.
struct OneStream : cuda::Streams {
  CUstream_st* get(int) override { return nullptr; }
  void wait(int, int) override {}
};

class Network {
 public:
  // buffers: (channels, height, width); code: the fields of Instruction, in order, of which the first 13 are read
  Network(const std::vector<std::array<int64_t, kBufferFields>>& buffers, const std::vector<std::vector<int64_t>>& code,
          int64_t gates, int64_t logits, int64_t element, int64_t batch, int multiprocessors, int shared_bytes)
      : element_(static_cast<cuda::Element>(element)), batch_(batch) {
    plan_.gates = gates;
    plan_.logits = logits;
    for (const auto& b : buffers) plan_.buffers.push_back({b[0], b[1], b[2]});
    for (const auto& f : code)
      plan_.code.push_back({static_cast<Op>(f.at(0)), f[1], f[2], f[3], f[4], f[5], f[6], static_cast<GateKind>(f[7]),
                            static_cast<Merge>(f[8]), f[9], f[10], f[11], f.at(12)});
    streams_.assign(buffers.size(), 0);
    schedule_.emplace("network", plan_, streams_, 1, element_, batch,
                      cuda::DeviceLimits{multiprocessors, shared_bytes});
  }

  void run(const Array& image, bool image_is_float, const Array& weights, const Array& thresholds, const Array* forced,
           const Array* count, const Array& logits, const Array& taken, const Array& scores, const Array& macs,
           const Array& map, const Array& workspace) {
    if (weights.size() < schedule_->weight_bytes || workspace.size() < schedule_->workspace_bytes)
      throw std::runtime_error("network: weights or workspace are too small");
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
    OneStream stream;
    int error = 0;
    switch (element_) {
      case cuda::Element::kFloat:
        error = cuda::run_network_as<float>(plan_, streams_, *schedule_, call, stream);
        break;
      case cuda::Element::kHalf:
        error = cuda::run_network_as<__half>(plan_, streams_, *schedule_, call, stream);
        break;
      case cuda::Element::kBfloat16:
        error = cuda::run_network_as<__nv_bfloat16>(plan_, streams_, *schedule_, call, stream);
        break;
    }
    simt::check(static_cast<cudaError_t>(error));
  }

  int64_t workspace_bytes() const { return schedule_->workspace_bytes; }
  int64_t zero_bytes() const { return schedule_->zero_bytes; }
  // (rows, columns, down, across, mid_stride, shared_bytes) of each layer of each dense block
  std::vector<std::array<int, 6>> tiles() const {
    std::vector<std::array<int, 6>> all;
    for (const auto& block : schedule_->tiles)
      for (const cuda::LayerTile& t : block)
        all.push_back({t.rows, t.columns, t.down, t.across, t.mid_stride, t.shared_bytes});
    return all;
  }

 private:
  Plan plan_;
  std::vector<int> streams_;
  cuda::Element element_;
  int64_t batch_;
  std::optional<cuda::Schedule> schedule_;
};

}  // namespace

DSN_SIMT_BINDINGS(network) {
  py::class_<Network>(m, "Network")
      .def(py::init<const std::vector<std::array<int64_t, kBufferFields>>&, const std::vector<std::vector<int64_t>>&,
                    int64_t, int64_t, int64_t, int64_t, int, int>(),
           py::arg("buffers"), py::arg("code"), py::arg("gates"), py::arg("logits"), py::arg("element"),
           py::arg("batch"), py::arg("multiprocessors"), py::arg("shared_bytes"))
      .def("run", &Network::run, py::arg("image"), py::arg("image_is_float"), py::arg("weights"), py::arg("thresholds"),
           py::arg("forced").none(true), py::arg("count").none(true), py::arg("logits"), py::arg("taken"),
           py::arg("scores"), py::arg("macs"), py::arg("map"), py::arg("workspace"))
      .def_property_readonly("workspace_bytes", &Network::workspace_bytes)
      .def_property_readonly("zero_bytes", &Network::zero_bytes)
      .def_property_readonly("tiles", &Network::tiles);
}
