// verify_greedy: the argmax of each row of a sequence, of ties the lowest id, as long as the row before yields its
// draft.
//
// Floor: 4 V bytes a row that is judged. For LongCat-Flash, V = 131072, that is 0.5 MB; 192 rows are 101 MB, 34 us at
// 3.0 TB/s. Drafts, tokens and numbers are 28 bytes a sequence of two rows.
//
// A cluster takes a sequence and judges row after row, so rows behind the last token are not read. Its blocks share a
// row, 16 bytes a load and four loads of a thread in flight.
#pragma once

#include "sampling/config.h"
#include "sampling/row_best.cuh"

namespace longcat_ops::sampling {

// The sequences whose drafts are judged.
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

struct VerifyGreedyParams {
  Verified v;
  uint32_t cluster, threads;  // blocks of a cluster, threads of a block
};

// Two rows in turn: a block may be done with one while others still read its result.
static_assert(kGreedySmemBytes == 2 * kBestScratchBytes);

// Row j of sequence b; negative: there is none.
LC_DEVICE int64_t row_of(const Verified& v, int64_t b, int64_t j) {
  const int64_t row = (v.first_row != nullptr ? int64_t{ptx::load_global(v.first_row + b)} : b * v.rows) + j;
  return row < v.sequences * v.rows ? row : -1;
}

// The draft that row j of sequence b is to yield is `token`.
LC_DEVICE bool is_draft(const Verified& v, int64_t b, int64_t j, int64_t token) {
  return ptx::load_global(v.drafts + b * v.stride_drafts + j) == token;
}

// By all threads of a block: -1 behind the `given` tokens of sequence b, and how many they are.
LC_DEVICE void finish_sequence(const Verified& v, const Team& team, int64_t b, int64_t given) {
  for (int64_t j = given + team.thread; j < v.rows; j += team.threads)
    ptx::store_global(v.tokens + b * v.stride_tokens + j, int64_t{-1});
  if (team.thread == 0) ptx::store_global(v.num_tokens + b, static_cast<int32_t>(given));
}

LC_KERNEL LC_LAUNCH_BOUNDS(kGreedyMaxThreads, 2) verify_greedy_kernel(LC_GRID_CONSTANT VerifyGreedyParams p) {
  const Verified& v = p.v;
  const Team team = team_of(p.cluster, p.threads);
  const int64_t b = ptx::block_index() / p.cluster;
  const uint32_t scratch = ptx::dynamic_smem_base();

  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  const int64_t drafts = ptx::load_global(v.num_drafts + b), last = drafts < v.rows - 1 ? drafts : v.rows - 1;
  int64_t given = 0;
  for (bool accepted = true; accepted && given <= last; ++given) {
    const int64_t row = row_of(v, b, given);
    int64_t token = -1;
    if (row >= 0) {
      const Best own = best_of_thread(team, v.logits + row * v.width, v.width);
      const Best best = best_of_team(team, own, scratch + given % 2 * kBestScratchBytes);
      if (is_finite(best)) token = best.id;
    }
    accepted = token >= 0 && given < last && is_draft(v, b, given, token);
    if (team.rank == 0 && team.thread == 0) ptx::store_global(v.tokens + b * v.stride_tokens + given, token);
  }
  if (team.rank == 0) finish_sequence(v, team, b, given);
  if (p.cluster > 1) ptx::cluster_sync();  // others have read this block's results
}

}  // namespace longcat_ops::sampling
