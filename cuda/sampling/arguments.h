// What the launchers of this family share, as kernels and the emulator see it: the sequences whose drafts are judged,
// and how they draw.
#pragma once

#include "launch/launch.h"
#include "sampling/draws.cuh"
#include "sampling/verified.cuh"

namespace longcat_ops::sampling {

// Elements from the first to the last of rows that lie `stride` apart.
inline int64_t span_of(int64_t rows, int64_t stride, int64_t width) {
  return rows > 0 && width > 0 ? (rows - 1) * stride + width : 0;
}

inline Verified verified_of(const lc_verified& v) {
  return {
      .logits = v.logits,
      .drafts = v.drafts,
      .num_drafts = v.num_drafts,
      .first_row = v.first_row,
      .tokens = v.tokens,
      .num_tokens = v.num_tokens,
      .stride_drafts = v.draft_stride,
      .stride_tokens = v.token_stride,
      .sequences = v.sequences,
      .rows = v.rows,
      .width = static_cast<uint32_t>(v.width),
  };
}

inline Memory memory_of(const lc_verified& v) {
  return Memory()
      .reads("logits", v.logits, v.sequences * v.rows * v.width)
      .reads("drafts", v.drafts, span_of(v.sequences, v.draft_stride, v.rows - 1))
      .reads("num_drafts", v.num_drafts, v.sequences)
      .reads("first_row", v.first_row, v.sequences)
      .updates("tokens", v.tokens, span_of(v.sequences, v.token_stride, v.rows))
      .writes("num_tokens", v.num_tokens, v.sequences);
}

inline Draws draws_of(const lc_draws& d) { return {d.seeds, d.lengths, d.temperature, d.top_k, d.top_p}; }

inline void add_draws(Memory& memory, const lc_draws& d, int64_t sequences) {
  memory.reads("seeds", d.seeds, sequences)
      .reads("lengths", d.lengths, sequences)
      .reads("temperature", d.temperature, sequences)
      .reads("top_k", d.top_k, sequences)
      .reads("top_p", d.top_p, sequences);
}

}  // namespace longcat_ops::sampling
