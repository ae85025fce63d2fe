#include "moe_dispatch/config.h"

#include <algorithm>

#include "common/constants.h"
#include "common/numeric.h"

namespace longcat_ops {

// One block takes up to 8192 choices, as many as its threads hold in registers; a cluster of 2, 4 or 8 takes up to
// 65536. Beyond, there are about 64 blocks, and more once those are full.
// NOTE: the counts of all blocks lie in src_of until it gets its values. They fit, blocks * G <= T * min(K, G): a block
// that is not alone has at least 2048 choices, and G <= kMaxExperts, K <= kMaxTopK.
MoePlanConfig choose_moe_plan_config(int64_t choices, int64_t num_local) {
  constexpr int64_t kMaxWarps = kPlanMaxThreads / kWarpLanes, kStep = kPlanMaxThreads, kMaxSteps = kPlanMaxSteps,
                    kManyBlocks = 64;
  int64_t cluster = 1;
  while (cluster < kPlanMaxCluster && choices > cluster * kStep * kMaxSteps) cluster *= 2;
  const bool one_launch = choices <= cluster * kStep * kMaxSteps;
  const int64_t steps = one_launch ? std::max<int64_t>(ceil_div(choices, cluster * kStep), 1)
                                   : std::clamp<int64_t>(ceil_div(choices, kStep * kManyBlocks), 2, kMaxSteps);
  const int64_t warps = std::clamp<int64_t>(ceil_div(choices, kWarpLanes * steps), 1, kMaxWarps);
  const int64_t blocks = one_launch ? cluster : ceil_div(choices, kWarpLanes * warps * steps);
  const int64_t threads = std::max<int64_t>(kWarpLanes * warps, align_up(num_local, kWarpLanes));
  const PlanForm form = !one_launch ? PlanForm::kLaunches : cluster > 1 ? PlanForm::kCluster : PlanForm::kAlone;
  return {form,
          blocks,
          static_cast<int>(threads),
          static_cast<int>(warps),
          static_cast<int>(steps),
          static_cast<int>(kPlanScanBytes + 4 * (warps + (form == PlanForm::kCluster ? 1 : 0)) * num_local),
          static_cast<int>(kPlanScanBytes + 4 * num_local)};
}

int64_t choose_moe_place_blocks(int64_t choices) { return ceil_div(choices, int64_t{kPlaceThreads}); }

// Small blocks: few tokens spread over more SMs, and many tokens fill the last wave more evenly.
MoeDispatchConfig choose_moe_dispatch_config(int64_t tokens, int64_t chunks, int entry_bytes) {
  constexpr int kWarps = kDispatchThreads / kWarpLanes;
  const int64_t warps = tokens * ceil_div(chunks, kWarpLanes);
  return {ceil_div(warps, kWarps), kDispatchThreads, kWarps * static_cast<int>(kMaxTopK) * entry_bytes};
}

}  // namespace longcat_ops
