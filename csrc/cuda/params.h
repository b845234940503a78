// What the host tells a kernel. Plain structs: they cross the host/device line as they are.
#pragma once

#include <cstdint>

#include "common/plan.h"

namespace dsn::cuda {

constexpr int kGroup = 4;         // channels
constexpr int kConvPadding = 16;  // elements between the groups of weights in shared memory
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kStripPixels = 64;          // pixels of a block of the load and store kernels
constexpr int kPointwisePixels = 16 * 4;  // pixels of a block of four warps: stem and transition
constexpr int kPointwiseThreads = 128;

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
  const void* weight;
  int32_t in_channels, height, width;
  int32_t depth_groups, columns, out_channels, out_groups;
};

struct LoadParams {
  Samples samples;
  Pooling pooling;
  const void* image;  // [B][C][H][W]
  bool image_is_float;
  void* out;
  int64_t out_stride;
  int32_t channels, pixels;
};

struct StoreParams {
  Samples samples;
  Source source;
  void* map;  // [B][C][H][W]
  bool map_is_float;
  int32_t channels;
};

struct HeadParams {
  Samples samples;
  Source source;
  unsigned long long* macs;  // [B]
  const float* norm;
  const float* weight;
  const float* bias;
  const float* constants;
  float* logits;  // [B][row] from the head's first logit on
  int64_t row;
  int32_t classes, total_groups;
  int32_t at_masks, at_groups, at_features;
};

}  // namespace dsn::cuda
