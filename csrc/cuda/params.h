// What the host tells a kernel. Plain structs: they cross the host/device line as they are.
#pragma once

#include <cstdint>

#include "common/layout.h"

namespace dsn::cuda {

constexpr int kGroup = 4;         // channels
constexpr int kConvPadding = 16;  // elements between the groups of weights in shared memory
// A convolution's warps multiply 32 pixels by so many times 8 columns; for how many blocks of a multiprocessor their
// registers suffice.
template <int kElementBytes>
constexpr int kMostWarpTiles = kElementBytes == 2 ? 16 : 4;
constexpr int kLeastSplitTiles = 8;  // fewer columns leave no registers for a cluster's sums
constexpr int kMostPacked = 8;
constexpr int conv_residency(int element_bytes, int warp_tiles) {
  return element_bytes == 2 && warp_tiles <= 4 ? 2 : 1;
}
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kStripPixels = 64;          // pixels of a block of the load and store kernels
constexpr int kPointwisePixels = 16 * 4;  // pixels of a block of four warps: stem and transition
constexpr int kPointwiseThreads = 128;
constexpr int kHeaderBytes = 128;  // shared memory begins with what the block agrees on

// A block's state, of which consumers read what is live.
struct Source {
  const void* data;       // [B][state]
  int64_t sample_stride;  // elements
  int64_t copy_stride;    // elements between the two copies of an add block's state; 0 for concat
  const uint8_t* taken;   // [B][gates] from the block's first gate on
  int64_t gates;          // row length of taken
  int32_t pixels, width, height;
  int32_t first_groups, first_channels;  // always live
  int32_t slice_groups, slice_channels;  // of one slice; 0 for add
  int32_t slices;                        // layers before this consumer
};

// The gates that a kernel decides once it has written what they depend on.
struct Gates {
  const float* weight;        // [layers][positions]
  const float* bias;          // [layers]
  const float* threshold;     // [layers]
  const uint8_t* forced;      // [B][gates] from the block's first gate on, or null
  uint8_t* taken;             // [B][gates] likewise
  float* score;               // [B][gates] likewise
  unsigned long long* words;  // [layers][word_count]: bit s of a layer's words is sample s
  int64_t gates;
  int32_t positions;  // padded channels of the block: row length of weight and pooled
  int32_t word_count, layers;
  int32_t first_layer;                     // the first to decide
  int32_t first_groups, slice_groups;      // of the block: layer l's gate reads first_groups + l * slice_groups groups
  int32_t first_channels, slice_channels;  // the same in channels, for the count of MACs
  GateKind kind;
};

// Channel sums of what a kernel wrote: each block adds its tile's; the last one of a sample takes their mean, which is
// what the block's gates read, and decides the next layers up to the first that opens.
struct Pooling {
  float* partial;            // [B][tiles][channels], scratch
  float* pooled;             // [B][gates.positions] or null: nobody asks
  unsigned* arrived;         // [B] blocks done, zero before the launch
  unsigned long long* macs;  // [B]
  int32_t tiles;             // of a sample
  int32_t blocks;            // of a sample, at least `tiles`
  int32_t channels;          // padded channels written
  int32_t first_channel;     // of `pooled` that they are
  float pixels;              // of the map
  Gates gates;
};

// Which samples a launch serves: those of `words`, or all below the count.
struct Samples {
  const unsigned long long* words;  // [word_count] or null: every sample
  int32_t word_count;
  int32_t batch;
  const int32_t* count;  // [1] or null: samples of the batch that are real, not padding
};

struct DenseLayerParams {
  Samples samples;
  Source source;
  Pooling pooling;
  void* out;  // [B][state]: the block's state
  int32_t layer;
  const void* norm;
  const void* reduce;
  const float* reduce_bias;
  const float* constants;
  const void* conv;
  const float* conv_bias;
  const void* expand;
  int32_t total_groups;                                  // of the layer's input, live or not
  int32_t bottleneck, growth;                            // out channels of reduce and conv
  int32_t reduce_columns, conv_columns, expand_columns;  // padded
  int32_t tile_rows, tile_columns, tiles_across;
  int32_t depth;        // plain: groups of one pass over the input
  int32_t mid_stride;   // elements from one pixel to the next in the 3x3's input
  int32_t wide_stride;  // likewise in the expand's input
  // offsets of shared memory, bytes
  int32_t at_masks, at_groups, at_bias, at_sums, at_mid, at_wide, at_conv;
};

// A whole block in one launch: a cluster of thread blocks for each sample.
constexpr int kResidentLayers = 64;
struct ResidentLayer {
  int32_t norm, reduce, reduce_bias, constants, conv;  // bytes from `weights`
};
struct ResidentBlockParams {
  DenseLayerParams layer;  // of the first layer; `pooling.gates` are those of all
  const unsigned char* weights;
  ResidentLayer layers[kResidentLayers];
  int32_t at_pooled, at_received;  // shared memory
};

struct TransitionParams {
  Samples samples;
  Source source, guide;  // guide.data null: none
  Pooling pooling;
  void* out;           // [B][state]
  int64_t out_stride;  // elements of a sample
  const float* norm;
  const void* weight;
  const float* constants;
  int32_t source_groups;  // all of the source's, live or not: the guide's begin there
  int32_t columns, out_channels, out_groups;
  int32_t out_width, out_pixels;
  int32_t at_masks, at_groups, at_guide_groups, at_bias, at_sums;
};

struct StemParams {
  Samples samples;
  Pooling pooling;
  const void* image;  // [B][C][H][W]
  bool image_is_float;
  void* out;
  int64_t out_stride;
  int32_t pixel_stride;  // elements
  const void* weight;
  int32_t in_channels, height, width;
  int32_t depth_groups, columns, out_channels, out_groups;
};

struct LoadParams {
  Samples samples;
  Pooling pooling;
  const void* image;  // [B][image_stride], of it [C][H][W] from `first` on
  bool image_is_float;
  int64_t image_stride, first;
  void* out;
  int64_t out_stride;
  int32_t pixel_stride;  // elements
  int32_t channels, pixels;
};

struct StoreParams {
  Samples samples;
  Source source;
  void* map;  // [B][map_stride], of it [C][H][W] from `first` on
  bool map_is_float;
  int64_t map_stride, first;
  int32_t channels;
};

// The channels that are live in a sample, by number, in order; of a mask, the filters that it chose.
struct Chosen {
  const uint16_t* list;  // [B][list_stride] from the list's first on, or null: all of them
  const int32_t* count;  // [B][count_stride] at the last run of channels that counts
  int32_t list_stride, count_stride;
};

struct HeadParams {
  Samples samples;
  Source source;
  Chosen inputs;             // of a map
  unsigned long long* macs;  // [B]
  const float* norm;
  const float* weight;
  const float* bias;
  const float* constants;
  float* logits;  // [B][row] from the head's first logit on
  int64_t row;
  const float *path, *path_bias;  // [gates][2][places], [2][places] or null
  const uint8_t* taken;           // [B][gates] from the path's first on
  int64_t gates;
  int32_t path_gates;
  int32_t classes, channels, total_groups;
  int32_t at_masks, at_groups, at_features;
};

// A buffer without slices: [B][pixel][channel], channels padded to whole groups with zeros.
struct Map {
  void* data;
  int64_t sample_stride;  // elements
  int32_t channels;       // padded
  int32_t width, height;
};

// The LSTM that all recurrent gates of a plan share; fields of dsn::recurrence.
struct Recurrence {
  const float *input, *hidden, *bias, *projection, *projection_bias;
};

// A gate that reads a map's pooled vector; weights in units of 16 bytes from the call's first.
struct UnitGate {
  int32_t weight, bias;
  int16_t gate;
  int16_t unless;  // a gate before it: where that is open, the map still changes and this one waits; or -1
};
constexpr int kChainedGates = 64;  // fit a launch's parameters

// Gates that read one map, in order, up to the first whose unit changes it.
struct UnitGates {
  const unsigned char* weights;
  Recurrence shared;          // of recurrent gates
  float* hidden;              // [B][2 kEmbedding]: the LSTM's state
  const float* threshold;     // [gates]
  const uint8_t* forced;      // [B][gates] or null
  uint8_t* taken;             // [B][gates]
  float* score;               // [B][gates]
  unsigned long long* words;  // [gates][word_count]
  int64_t gates;
  int32_t word_count, channels;
  int32_t first;  // the gate before which the LSTM's state is zero
  int32_t count;
  GateKind kind;
  UnitGate unit[kChainedGates];
};

// Chosen filters are computed side by side. `packed`: they are stored so, and their readers go by the same mask.
// `scattered`: the source has all its channels in their places, and those of `inputs` are read.
// A convolution of several groups is as many products side by side: of each, in_channels are read and out_channels
// left, and its weights, norm and bias follow those of the product before.
struct Conv2dParams {
  Samples samples;
  Pooling pooling;
  UnitGates gates;  // that read what is pooled
  Map source, out;
  const void* norm;        // [group][scale of 4, shift of 4] or null: no BN-ReLU before
  const void* weight;      // [tap][group][column][4]
  const void* selectable;  // with a mask: [tap][in channel][column]
  const float* bias;       // [column]
  const float* constants;  // [in channel][column] or null: what one without data adds
  Chosen inputs, filters;
  const uint8_t* mask;  // [B][mask_stride] at the first filter, or null
  int32_t mask_stride;
  bool off_look;         // the kernel must also store what filters leave that are off
  const int64_t* order;  // [B] samples with equal masks side by side, or null
  const int32_t* alike;  // [B] the first sample with equal masks, or null
  int32_t products;
  int32_t blocks;  // of a sample and product
  int32_t items;   // tiles of all samples and columns of a product; samples that are packed count once
  int32_t walk;    // side by side that a block does: columns outermost, then samples; 0: every gridDim.x-th
  int32_t src_offset, in_channels;
  int32_t in_groups;  // padded to whole k-steps
  int32_t out_channels, out_offset, columns;
  int32_t limit;      // columns that are stored: out_channels, or the padding too
  int32_t padding;    // channels behind all outputs that are set to zero
  int32_t activated;  // so many outputs get the activation
  Activation activation;
  bool accumulate, packed, in_pairs;
  bool scattered;
  bool means;        // each pixel read is the mean of 2x2 of the normalised source
  bool wide_groups;  // two groups of the source are 16 bytes and aligned to them
  int32_t taps, stride, dilation;
  int32_t kernel_rows, kernel_columns, pad_rows, pad_columns;
  int32_t tile_rows, tile_columns, tiles_across;
  int32_t warps_down;     // warps side by side over pixels; the others share the columns
  int32_t block_columns;  // of a block
  int32_t depth;          // groups of one pass over the input
  int32_t cell_stride;    // elements from one pixel to the next in shared memory
  // offsets of shared memory, bytes
  int32_t at_lists, at_norm, at_bias, at_sums, at_cells, at_weights;
  int32_t slot_bytes;          // from one slot of cells and weights to the next
  int32_t slots;               // one if there is one pass, else two or three
  int32_t pack;                // samples that run of which a tile takes the same part
  int32_t split;               // blocks of a cluster that share an item's input channels out
  int32_t at_old, old_stride;  // of what is added to, where it is staged; elements from one pixel to the next, or 0
};

// Channels side by side that are live where the gates that begin at `gate` and `both` are open; -1: that one always is.
struct ChannelRange {
  int32_t channels;
  int32_t gate = -1, both = -1;  // of the first channel
  bool operator==(const ChannelRange&) const = default;
};

constexpr int kListsAtOnce = 80, kRangesAtOnce = 216;  // fit a launch's parameters
struct FilterListsParams {
  Samples samples;
  const uint8_t* masks;  // [B][gates]
  uint8_t* taken;        // [B][gates], a copy of masks, or null: already made
  float* score;          // [B][gates], zeros
  uint16_t* lists;       // [B][list_stride]
  int32_t* counts;       // [B][count_stride]: live channels of a list up to a range's end
  int32_t gates, list_stride, count_stride;
  int32_t count;  // lists
  struct {
    int32_t at, first_count, first_range, ranges;
  } list[kListsAtOnce];
  ChannelRange range[kRangesAtOnce];
};
static_assert(sizeof(FilterListsParams) <= 4096);

struct UnitGateParams {
  Samples samples;
  const float* pooled;       // [B][positions]
  unsigned long long* macs;  // [B]
  int32_t positions;
  int32_t only_if;  // a gate: where it is shut, so are these; or -1
  UnitGates gates;
};

// Gates whose scores are values of a pooled vector.
struct DecideParams {
  Samples samples;
  const float* pooled;        // [B][positions] from the first score on
  const float* threshold;     // [count]
  const uint8_t* forced;      // [B][gates] from the first of these gates on, or null
  uint8_t* taken;             // [B][gates] likewise
  const uint8_t* only_if;     // [B][gates] at a gate: where it is shut, so are these; or null
  float* score;               // [B][gates] likewise
  unsigned long long* words;  // [count][word_count]
  int64_t gates;
  int32_t positions, word_count, count;
};

struct LinearParams {
  Samples samples;
  const float* pooled;  // [B][positions]
  const float* weight;  // [outputs][channels]
  const float* bias;
  float* out;                // [B][row] from the first output on: logits, or a pooled vector
  unsigned long long* macs;  // [B]
  int64_t row;
  int32_t positions, channels, outputs;
  Activation activation;
};

// One update unit of a gradual layer; weights in units of 16 bytes from the call's first.
struct GradualSegment {
  int32_t first, first_bias;  // 1x1 of all channels, the shortcut's filters behind its own
  int32_t conv, conv_bias;    // 3x3
  int32_t last, last_bias;    // 1x1
  int32_t channel, size;      // that it updates
  int32_t width;              // of the 3x3
  bool shortcut;
};
constexpr int kGradualSegments = 80;  // fit a launch's parameters

struct GradualParams {
  Samples samples;
  Map map;                   // updated in place
  unsigned long long* macs;  // [B]
  const unsigned char* weights;
  int32_t segments;
  int32_t rows, blocks;                            // of a block; of a cluster, which holds a sample
  int32_t groups;                                  // of the state, padded to whole k-steps
  int32_t channels;                                // of it
  int32_t state_stride, width_stride, add_stride;  // elements from one pixel to the next in shared memory
  int32_t width_channels;                          // padded, of the widest segment
  int32_t at_state, at_mid, at_inner, at_add;      // offsets of shared memory, bytes
  GradualSegment segment[kGradualSegments];
};
static_assert(sizeof(GradualParams) <= 4096);

// Residual units of two 3x3 convolutions, all of whose channels they keep; weights in units of 16 bytes from the call's
// first.
struct StageUnit {
  int32_t weight[2], bias[2];  // of either convolution
  int32_t gate;                // its number among `gates`, or -1
};
constexpr int kStageThreads = 512, kStageWarps = kStageThreads / 32;
constexpr int kStageUnits = 56;  // leave room among kChainedGates for gates behind them
constexpr int kStageMaps = 4;

// How the blocks of a cluster, and their warps, share a map and the columns of its weights.
struct StageCut {
  int32_t rows = 0, down = 0, across = 0;  // rows of a block; blocks over rows and over columns
  int32_t columns = 0;                     // of a block
  int32_t tiles = 0;                       // what a warp multiplies: so many times 16 pixels by so many times 8 columns
  int32_t strips = 0, pieces = 0;          // of 8 pixels side by side; strips times what is above one another
  int32_t split = 1;                       // warps that share a product's k-steps
  int32_t pitch = 0, stride = 0;           // cells of a row, elements from one cell to the next in shared memory
  int32_t frame_rows = 0;                  // of a block
  int32_t weight_pitch = 0;                // elements from one group's weights to the next's
  int32_t received_pitch = 0;              // floats of a channel's sums
  int32_t source_pitch = 0, source_stride = 0,
          source_rows = 0;  // of the map before, where a unit leads from there here
  // offsets of shared memory, bytes; of weights and bias: the first convolution's, and from there to the second's
  int32_t at_gate = 0, at_limits = 0, at_hidden = 0, at_pooled = 0, at_shared = 0, at_embed = 0, at_received = 0;
  int32_t at_bias = 0, at_parts = 0, at_state = 0, at_mid = 0, at_source = 0, at_shortcut = 0, at_weights = 0;
  int32_t bias_bytes = 0, weight_bytes = 0, shared_bytes = 0;
};

// A map and the units that change it.
struct StageMap : StageCut {
  Map map;
  float pixels;
  int32_t groups, channels;         // groups padded to whole k-steps
  int32_t first_unit, units;        // the first one leads here from the map before, but for the first map's
  int32_t shortcut, shortcut_bias;  // weights of that unit's 1x1
};

struct StageParams {
  Samples samples;
  float* pooled;              // [B][map.channels] of the last map, or null: nobody asks
  const float* first_pooled;  // likewise of the first
  unsigned long long* macs;   // [B]
  const unsigned char* weights;
  int32_t maps, blocks;  // blocks of a cluster
  bool pools;            // channel sums of each map
  int32_t own_gates;     // of the units, before those that read the last map when all units are done
  StageMap at[kStageMaps];
  StageUnit unit[kStageUnits];
  UnitGates gates;
};
static_assert(sizeof(StageParams) <= 4096);

// Pre-activation bottleneck units on one map; weights in units of 16 bytes from the call's first.
struct BottleneckConv {
  int32_t weight, bias;
  int32_t list, count;  // of the filters that are chosen, from the call's lists and counts on; or -1: all
};
struct BottleneckUnit {
  int32_t norm;
  BottleneckConv conv[3];  // 1x1, 3x3, 1x1
};
constexpr int kBottleneckUnits = 64;  // fit a launch's parameters
constexpr int kBottleneckTiles = 2;   // of 8 columns that a warp multiplies
constexpr int kListPiece = 8;         // channels of a list that are copied at once

// How the blocks of a cluster share a map's rows, and the shared memory of one.
struct BottleneckCut {
  int32_t rows = 0, blocks = 0;
  int32_t state_stride = 0, width_stride = 0;  // elements from one pixel to the next
  int32_t pitch[3] = {};                       // of each convolution: elements from one group's weights to the next's
  int32_t list_row = 0;                        // channels of a unit's lists
  int32_t at_counts = 0, at_lists = 0, at_norm = 0, at_parts = 0, at_state = 0, at_inner = 0, at_mid[2] = {};
  int32_t at_bias[3] = {}, at_weights[3] = {};  // bytes
  int32_t shared_bytes = 0;
};

struct BottleneckParams : BottleneckCut {
  Samples samples;
  Map map;                   // updated in place
  unsigned long long* macs;  // [B]
  const unsigned char* weights;
  const uint16_t* lists;  // [B][list_stride]
  const int32_t* counts;  // [B][count_stride]
  int32_t list_stride, count_stride;
  int32_t units;
  int32_t channels, groups;        // of the map; groups padded to whole k-steps
  int32_t width, width_groups;     // of the 3x3, likewise
  int32_t columns, width_columns;  // padded
  BottleneckUnit unit[kBottleneckUnits];
};
static_assert(sizeof(BottleneckParams) <= 4096);

struct ResampleParams {
  Samples samples;
  Pooling pooling;
  UnitGates gates;  // that read what is pooled
  Map source, out;  // pool_sums: both the source
  Op op;
  bool windowed;
  bool counts_padding;  // of an average: zeros around the map count
  Activation activation;
  const float *weight, *bias;  // of dsn::listed, or null
  int32_t weight_row;          // floats
  const uint8_t* mask;         // [B][mask_stride] at the first channel, or null: of a pool, the channels that it keeps
  int32_t mask_stride;
  int32_t in_channels, src_offset, out_offset;
  int32_t first_group, groups;  // of the destination that are visited
  int32_t stride, dilation;
  int32_t window_rows, window_columns, pad_rows, pad_columns;
};

struct PointwiseParams {
  Samples samples;
  Map source, out;
  const float* factor;         // [B][factor_row], of a pooled vector, or null: 1
  const float *scale, *shift;  // of dsn::listed, or null: 1 and 0
  int64_t factor_row;
  int32_t in_channels, src_offset, out_offset;
  int32_t first_group, groups;  // of the destination that are visited
  int32_t tiles;                // of a sample's source
  int32_t times;                // rows and columns of the destination that each of the source becomes
  bool accumulate;
  bool keeps_behind;  // the channels of the last group behind those that are written
  Activation activation;
};

}  // namespace dsn::cuda
