// Whole plans on the host runner: the launches of csrc/cuda/network.cuh.
#include <pybind11/stl.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "cuda/network.h"
#include "simt/python.h"

// The runner's module links nothing of the shipped library.
#include "cuda/conv2d_tile.cpp"
#include "cuda/gate_chains.cpp"
#include "cuda/gradual_runs.cpp"
#include "cuda/schedule.cpp"

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
  // buffers: (channels, height, width); code: the fields of Instruction, in order
  Network(const std::vector<std::array<int64_t, kBufferFields>>& buffers, const std::vector<std::vector<int64_t>>& code,
          int64_t gates, int64_t logits, int64_t element, int64_t batch, int multiprocessors, int shared_bytes)
      : element_(static_cast<cuda::Element>(element)), batch_(batch) {
    plan_.gates = gates;
    plan_.logits = logits;
    for (const auto& b : buffers) plan_.buffers.push_back({b[0], b[1], b[2]});
    for (const auto& fields : code) {
      size_t next = 0;
      each_field(plan_.code.emplace_back(), [&](auto& field) {
        field = static_cast<std::remove_reference_t<decltype(field)>>(fields.at(next++));
      });
    }
    streams_.assign(buffers.size(), 0);
    schedule_.emplace("network", plan_, streams_, 1, element_, batch,
                      cuda::DeviceLimits{multiprocessors, shared_bytes});
  }

  void run(const Array& image, bool image_is_float, const Array& weights, const Array& thresholds, const Array* forced,
           const Array* count, const Array& logits, const Array& taken, const Array& scores, const Array& macs,
           const Array& map, const Array& workspace) {
    if (weights.size() < schedule_->weight_bytes || workspace.size() < schedule_->workspace_bytes)
      throw std::runtime_error("network: weights or workspace are too small");
    if (!forced && !schedule_->masks.empty())
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
  // (rows, columns, down, across, block_columns, column_blocks, warp_tiles, warps_down, depth, resident) of each
  // convolution
  std::vector<std::array<int, 10>> conv_tiles() const {
    std::vector<std::array<int, 10>> all;
    for (const auto& step : schedule_->convs)
      if (const cuda::ConvTile& t = step.tile; t.rows)
        all.push_back({t.rows, t.columns, t.down, t.across, t.block_columns, t.column_blocks, t.warp_tiles,
                       t.warps_down, t.depth, t.resident});
    return all;
  }
  // (first instruction, one past the last, rows, blocks of a cluster, shared_bytes) of each gradual layer
  std::vector<std::array<int, 5>> gradual_runs() const {
    std::vector<std::array<int, 5>> all;
    for (const cuda::GradualRun& r : schedule_->gradual)
      all.push_back({r.begin, r.end, r.rows, r.blocks, r.shared_bytes});
    return all;
  }
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
      .def_property_readonly("gradual_runs", &Network::gradual_runs)
      .def_property_readonly("conv_tiles", &Network::conv_tiles)
      .def_property_readonly("tiles", &Network::tiles);
}
