// CPU kernels that choose tokens from logits. Free of torch; each works on a range of sequences, so that the caller
// owns the threads. What a row yields depends on the row, its sequence's numbers and its token's number alone: sums in
// float64 run in the order of ids, those of a cut in the order of its tokens.
//
// Scratch, which each thread keeps: 8 bytes for each element of its widest row so far, and 16 for each token that a cut
// had to put in order.
#pragma once

#include "cpu/philox.h"
#include "cpu/quant.h"

namespace longcat_ops::cpu {

// How sequences draw; each pointer [sequences].
struct Draws {
  const int64_t* seeds;
  const int32_t* lengths;    // rows of the cache; a sequence's first row of logits yields token lengths + 1 of its text
  const float* temperature;  // greedy unless positive and finite
  const int32_t* top_k;      // 1 .. width - 1 cuts
  const float* top_p;        // below 1 cuts
};

struct VerifyParams {
  const float* logits;  // [sequences * rows, width]
  int64_t sequences, rows, width;
  const int64_t* drafts;  // [sequences, rows - 1]
  int64_t draft_stride;
  const int32_t* num_drafts;  // [sequences]; negative: idle
  const int32_t* first_row;   // [sequences] of logits; null: those of sequence b begin at b * rows
  const Draws* draws;         // null: all are greedy
  const float* draft_probs;   // [sequences, rows - 1, width] that drafts were drawn from; null: drafts are an argmax
  int64_t probs_stride, probs_row_stride;
  int64_t* tokens;  // [sequences, rows]; -1 behind those given, and for a row that is not finite
  int64_t token_stride;
  int32_t* num_tokens;  // [sequences]
};

struct SampleParams {
  Matrix logits;  // f32 [sequences, width]
  int64_t width;
  Draws draws;
  int64_t* tokens;  // [sequences]
  int64_t token_stride;
  Matrix probs;  // f32 [sequences, width]: the weights that the token was drawn from
};

struct FilterParams {
  Matrix logits;  // f32 [sequences, width], of the head that chose draft number `depth`
  int64_t width;
  int32_t* num_drafts;        // [sequences]; below depth: the row is not read
  const float* hidden;        // [units, 4]: weights of joint, entropy and depth, and a bias
  const float* output;        // [units + 1]: weights, and a bias
  const float* joint_before;  // [sequences]; null: 1
  int64_t units, depth, top;  // top: so many of the largest probabilities count in the entropy
  float beta;
  float *joint, *entropy, *score;  // [sequences]
};

// Sequences [begin, end).
void verify(const VerifyParams& params, int64_t begin, int64_t end);
void sample_tokens(const SampleParams& params, int64_t begin, int64_t end);
void filter_drafts(const FilterParams& params, int64_t begin, int64_t end);

}  // namespace longcat_ops::cpu
