// advance_lengths: how many of its new tokens each sequence keeps, and its state after them.
//
// Floor per sequence of q tokens: 8 q + 20 bytes read, 28 written; the stop ids are shared. At 192 sequences of 2
// tokens these are 12 KB: a launch is all that it costs.
//
// A warp takes a sequence, a lane a token. Sums are in 64 bits.
#pragma once

#include "ptx/ptx.cuh"
#include "step/config.h"

namespace longcat_ops::step {

struct AdvanceParams {
  const int64_t* tokens;                           // [sequences, width]
  const int32_t *num_tokens, *first_row, *limits;  // [sequences]
  const int64_t* stop_ids;                         // [num_stop_ids]
  int32_t *lengths, *num_drafts, *kept;            // [sequences]
  int64_t *newest, *last_row;                      // [sequences], newest stride_newest apart
  int64_t stride_tokens, stride_newest;
  int64_t sequences, width, num_stop_ids;
};

LC_DEVICE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

struct Kept {
  int64_t tokens;
  bool ended;  // the last of them ends the text
};

// Of the first `most` tokens those up to the first that ends the text.
LC_DEVICE Kept count_kept(const AdvanceParams& p, const int64_t* tokens, int64_t most) {
  for (int64_t begin = 0; begin < most; begin += 32) {
    const int64_t at = begin + ptx::lane_index();
    bool ends = false;
    if (at < most) {
      const int64_t token = ptx::load_global(tokens + at);
      ends = token < 0;
      for (int64_t s = 0; s < p.num_stop_ids; ++s) ends |= ptx::load_global(p.stop_ids + s) == token;
    }
    const uint32_t ending = ptx::ballot(ends);
    if (ending != 0) return {begin + 1 + ptx::popcount(~ending & (ending - 1)), true};
  }
  return {most > 0 ? most : 0, false};
}

LC_KERNEL LC_LAUNCH_BOUNDS(kAdvanceThreads, 4) advance_lengths_kernel(LC_GRID_CONSTANT AdvanceParams p) {
  const int64_t b = int64_t{ptx::block_index()} * (kAdvanceThreads / 32) + ptx::warp_index();
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  if (b >= p.sequences) return;
  Kept kept{0, false};
  const bool is_active = ptx::load_global(p.num_drafts + b) >= 0;
  const int64_t* tokens = p.tokens + b * p.stride_tokens;
  const int64_t old_length = ptx::load_global(p.lengths + b), limit = ptx::load_global(p.limits + b);
  if (is_active) {
    const int64_t given = smaller(ptx::load_global(p.num_tokens + b), p.width);
    kept = count_kept(p, tokens, smaller(given, limit - old_length - 1));
  }
  ptx::warp_sync();  // all lanes have read the state
  if (ptx::lane_index() != 0) return;
  const int64_t length = old_length + kept.tokens, first_row = ptx::load_global(p.first_row + b);
  ptx::store_global(p.kept + b, static_cast<int32_t>(kept.tokens));
  ptx::store_global(p.last_row + b, kept.tokens > 0 && first_row >= 0 ? first_row + kept.tokens - 1 : int64_t{-1});
  if (!is_active) return;
  if (kept.tokens > 0) {
    ptx::store_global(p.lengths + b, static_cast<int32_t>(length));
    ptx::store_global(p.newest + b * p.stride_newest, ptx::load_global(tokens + kept.tokens - 1));
  }
  const bool is_finished = kept.tokens == 0 || kept.ended || length + 1 >= limit;
  ptx::store_global(p.num_drafts + b,
                    is_finished ? -1 : static_cast<int32_t>(smaller(p.width - 1, limit - length - 2)));
}

}  // namespace longcat_ops::step
