// The sequences whose drafts are judged: what verify_greedy and verify_sampled share.
#pragma once

#include "sampling/row_best.cuh"

namespace longcat_ops::sampling {

struct Verified {
  const float* logits;                    // [sequences * rows, width]
  const int64_t* drafts;                  // [sequences, rows - 1]
  const int32_t *num_drafts, *first_row;  // [sequences]; first_row null: those of sequence b begin at b * rows
  int64_t* tokens;                        // [sequences, rows]
  int32_t* num_tokens;                    // [sequences]
  int64_t stride_drafts, stride_tokens;
  int64_t sequences, rows;
  uint32_t width;
};

// The last row that may be judged; negative: the sequence is idle.
LC_DEVICE int64_t last_row(const Verified& v, int64_t b) {
  const int64_t drafts = ptx::load_global(v.num_drafts + b);
  return drafts < v.rows - 1 ? drafts : v.rows - 1;
}

// Row j of sequence b; negative: there is none.
LC_DEVICE int64_t row_of(const Verified& v, int64_t b, int64_t j) {
  const int64_t row = (v.first_row != nullptr ? int64_t{ptx::load_global(v.first_row + b)} : b * v.rows) + j;
  return row < v.sequences * v.rows ? row : -1;
}

// What row j of sequence b is to yield.
LC_DEVICE int64_t draft_of(const Verified& v, int64_t b, int64_t j) {
  return ptx::load_global(v.drafts + b * v.stride_drafts + j);
}

// By all threads of a block: -1 behind the `given` tokens of sequence b, and how many they are.
LC_DEVICE void finish_sequence(const Verified& v, const Team& team, int64_t b, int64_t given) {
  for (int64_t j = given + team.thread; j < v.rows; j += team.threads)
    ptx::store_global(v.tokens + b * v.stride_tokens + j, int64_t{-1});
  if (team.thread == 0) ptx::store_global(v.num_tokens + b, static_cast<int32_t>(given));
}

}  // namespace longcat_ops::sampling
