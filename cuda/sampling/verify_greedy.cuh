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
#include "sampling/verified.cuh"

namespace longcat_ops::sampling {

struct VerifyGreedyParams {
  Verified v;
  uint32_t cluster, threads;  // blocks of a cluster, threads of a block
};

// Two rows in turn: a block may be done with one while others still read its result.
static_assert(kGreedySmemBytes == 2 * kBestScratchBytes);

LC_KERNEL LC_LAUNCH_BOUNDS(kGreedyMaxThreads, 2) verify_greedy_kernel(LC_GRID_CONSTANT VerifyGreedyParams p) {
  const Verified& v = p.v;
  const Team team = team_of(p.cluster, p.threads);
  const int64_t b = ptx::block_index() / p.cluster;
  const uint32_t scratch = ptx::dynamic_smem_base();

  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  const int64_t last = last_row(v, b);
  int64_t given = 0;
  for (bool accepted = true; accepted && given <= last; ++given) {
    const int64_t row = row_of(v, b, given);
    int64_t token = -1;
    if (row >= 0) {
      const Best own = best_of_thread(team, v.logits + row * v.width, v.width);
      const Best best = best_of_team(team, own, scratch + given % 2 * kBestScratchBytes);
      if (is_finite(best)) token = best.id;
    }
    accepted = token >= 0 && given < last && token == draft_of(v, b, given);
    if (team.rank == 0 && team.thread == 0) ptx::store_global(v.tokens + b * v.stride_tokens + given, token);
  }
  if (team.rank == 0) finish_sequence(v, team, b, given);
  if (p.cluster > 1) ptx::cluster_sync();  // others have read this block's results
}

}  // namespace longcat_ops::sampling
