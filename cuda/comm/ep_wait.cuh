// ep_wait: waits until all ranks have sent their rows of a call. One warp, whose lane r polls the flag of rank r, which
// lies in this rank's own memory: 4 bytes from each rank, 32 bytes a poll.
#pragma once

#include "comm/ep_view.cuh"

namespace longcat_ops::comm {

struct EpWaitParams {
  ExpertView view;
  Traffic traffic;
};

LC_KERNEL LC_LAUNCH_BOUNDS(kWarpLanes, 1) ep_wait_kernel(LC_GRID_CONSTANT EpWaitParams p) {
  const ExpertView& e = p.view;
  const RankView& v = e.ranks;
  const uint32_t source = ptx::lane_index();
  const uint32_t epoch = ptx::load_global(e.call + kCallEpoch);
  const bool waits = source < v.ranks;
  const uint32_t* flag = flag_of(e, v.rank, p.traffic, waits ? source : 0);
  Status status = waits && is_aborted(v) ? Status::kPeerAborted : Status::kNone;
  Patience patience(v, kFewPolls);
  while (waits && status == Status::kNone && ptx::load_acquire_sys(flag) != epoch)
    if (status = patience.after_poll(); status == Status::kNone) ptx::spin_pause();
  const uint32_t failed = ptx::ballot(status != Status::kNone);
  if (failed == 0) return;

  // All that are behind now, not only those whose lane gave up.
  const uint32_t seen = ptx::load_relaxed_sys(flag);
  const uint32_t missing = ptx::ballot(waits && seen != epoch);
  const uint32_t first = ptx::popcount((missing & -missing) - 1);  // 32 if none is behind
  const uint32_t seen_first = ptx::shuffle(seen, static_cast<int>(first % 32));
  if (source == ptx::popcount((failed & -failed) - 1))
    give_up(v, {status, stage_of(p.traffic), epoch, seen_first, missing});
}

}  // namespace longcat_ops::comm
