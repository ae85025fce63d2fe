// CPU kernels of the bookkeeping of a decode step: which rows it computes, and what becomes of its sequences. Free of
// torch. Each is one pass over all sequences; no index depends on an addition in 32 bits.
#pragma once

#include "cpu/quant.h"

namespace longcat_ops::cpu {

// Rows of all sequences, packed to the front; the rest is padding, -1.
struct PackRowsParams {
  Matrix tokens;  // i64 [sequences, width], column stride 1
  int64_t sequences, width, copies;
  const int32_t *num_drafts, *lengths;  // [sequences]
  int64_t* ids;                         // [sequences * width]
  int32_t *sequence, *position;         // the same
  int32_t* first_row;                   // [sequences]
  int32_t* num_rows;                    // [copies]
};

// How many of its new tokens each sequence keeps, and its state after them.
struct AdvanceParams {
  Matrix tokens;  // i64 [sequences, width], column stride 1
  int64_t sequences, width, num_stop_ids;
  const int32_t *num_tokens, *first_row, *limits;  // [sequences]
  const int64_t* stop_ids;
  int32_t *lengths, *num_drafts, *kept;  // [sequences]
  int64_t* newest;                       // [sequences], newest_stride apart
  int64_t newest_stride;
  int64_t* last_row;
};

void pack_rows(const PackRowsParams& params);
void advance_lengths(const AdvanceParams& params);

}  // namespace longcat_ops::cpu
