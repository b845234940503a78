// The convolutions of pairs of bfloat16; included behind conv_impl.h with DSN_PAIRS set.

static void pointwise_pairs(const ConvTile& t) {
  const InstructionMode mode;
  conv_tile<1>(t);
}

static void conv3x3_pairs(const ConvTile& t) {
  const InstructionMode mode;
  conv_tile<9>(t);
}

static void conv3x3_stride2_pairs(const ConvTile& t) {
  const InstructionMode mode;
  conv_tile<9, 2>(t);
}

static void pack_pairs(float* rows, int64_t stride, int pairs) {
  for (int i = 0; i < pairs; ++i) {
    const float* from = rows + 2 * i * stride;
    for (int64_t j = 0; j < stride; j += kLanes)
      store(rows + i * stride + j, make_pairs(load(from + j), load(from + stride + j)));
  }
}

static void normalise_pairs(const float* src, const int* rows, int live_count, const float* scale, const float* shift,
                            float* dst, int64_t dst_stride) {
  ConvTile t{};
  t.state = src;
  t.scale = scale;
  t.shift = shift;
  for (int l = 0; l < live_count; ++l, rows += 2, dst += dst_stride)
#pragma GCC unroll 8
    for (int i = 0; i < kTile; i += kLanes)
      store(dst + i, make_pairs(normalised(t, rows[0], i), normalised(t, rows[1], i)));
}

static float dot_of_pairs(float sum, uint32_t a, uint32_t b) {
  const InstructionMode mode;
  return dot_pairs(broadcast_word(&sum), (vec)_mm512_set1_epi32((int)a), (vec)_mm512_set1_epi32((int)b))[0];
}
