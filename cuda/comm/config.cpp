#include "comm/config.h"

#include <algorithm>

namespace longcat_ops::comm {
namespace {

int64_t largest_low_latency(const CommProblem& problem) { return problem.ll_bytes >= 0 ? problem.ll_bytes : kLlBytes; }

// NOTE: lines come in two parities, so no rank may get two steps ahead of another. In an all-reduce it cannot: all
// ranks send, and none ends before it has heard from all. Without bytes nobody hears, so there barriers must keep the
// ranks together.
CommForm form_of(const CommProblem& problem) {
  if (problem.collective != Collective::kAllReduce && problem.collective != Collective::kAllReduceRmsNorm)
    return CommForm::kDirect;
  const bool small = problem.bytes > 0 && problem.bytes <= largest_low_latency(problem);
  return small && problem.ranks > 1 ? CommForm::kLowLatency : CommForm::kTwoShot;
}

// Packs of the rank that has the most to do.
int64_t busiest_packs(const CommProblem& problem, CommForm form) {
  const int64_t packs = ceil_div(problem.bytes, kPackBytes);
  // The root of a broadcast stores everything; in the low-latency form every rank does.
  if (form == CommForm::kLowLatency || problem.collective == Collective::kBroadcast) return packs;
  if (problem.collective != Collective::kAllReduce && problem.largest_part >= 0)
    return ceil_div(problem.largest_part, kPackBytes);
  return shard_size(packs, problem.ranks);
}

}  // namespace

// NOTE: a rank has only the loads of its own shard in flight, and with fewer ranks it must have more: half the ranks,
// twice the blocks. At 8 ranks, 4 blocks x 512 threads x 4 packs are 128 KB in flight, and an H100 needs about 90.
int default_blocks(int ranks) {
  return static_cast<int>(std::clamp<int64_t>(ceil_div(kBlocksOfAllRanks, ranks), kFewestBlocks, kMostBlocks));
}

CommConfig choose_comm_config(const CommProblem& problem) {
  CommConfig config;
  config.form = form_of(problem);
  // NOTE: with two ranks the switch has nothing to save: it would send each rank's own data back to it.
  config.policy = problem.has_multicast && problem.ranks > 2 && !problem.deterministic ? SwitchPolicy::kMultimem
                                                                                       : SwitchPolicy::kPeers;
  config.blocks = problem.blocks > 0 ? problem.blocks : default_blocks(problem.ranks);
  config.threads = problem.threads > 0 ? problem.threads : kThreads;
  config.packs = kPacks;
  config.shard_packs = busiest_packs(problem, config.form);
  if (config.form == CommForm::kLowLatency)
    config.scratch_bytes = ll_scratch_bytes(problem.ranks, largest_low_latency(problem));
  else
    config.scratch_bytes = problem.staged ? align_up(problem.bytes, kPackBytes) : 0;
  return config;
}

}  // namespace longcat_ops::comm
