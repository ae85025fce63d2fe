#include "moe_route/config.h"

#include <algorithm>

#include "common/constants.h"
#include "common/numeric.h"

namespace longcat_ops {

// Up to 8 tokens take one block, up to 64 a cluster of 8 blocks: both save the launch that zeroes counts. Beyond, a
// cluster would have too few SMs: each SM gets a warp, then more per block. No result depends on it.
MoeRouteConfig choose_moe_route_config(int64_t tokens, int64_t num_experts) {
  constexpr int64_t kMaxWarps = kRouteMaxThreads / kWarpLanes, kSlotLogits = 8 * kWarpLanes;
  constexpr int kCluster = 8;
  if (tokens > kMaxWarps && tokens <= kCluster * kMaxWarps)
    return {kCluster, static_cast<int>(kWarpLanes * ceil_div(tokens, kCluster)), false, kCluster,
            static_cast<int>(ceil_div(num_experts, kSlotLogits))};
  const int64_t spread = std::min(ceil_div(tokens, kH100Sms), kMaxWarps);
  const int64_t warps = std::max<int64_t>(tokens <= kMaxWarps ? tokens : spread, 1);
  const int64_t blocks = std::max<int64_t>(ceil_div(tokens, warps), 1);
  return {blocks, static_cast<int>(kWarpLanes * warps), blocks > 1, 1,
          static_cast<int>(ceil_div(num_experts, kSlotLogits))};
}

}  // namespace longcat_ops
