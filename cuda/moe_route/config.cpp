#include "moe_route/config.h"

#include <algorithm>

#include "common/numeric.h"

namespace longcat_ops {

// Each SM gets a warp, then more per block. Blocks may wait for the first one, which zeroes counts, if the GPU holds
// all of them at once: the launch bounds keep room for two per SM. No result depends on the form.
MoeRouteConfig choose_moe_route_config(int64_t tokens, int64_t num_experts) {
  constexpr int64_t kMaxWarps = kRouteMaxThreads / kWarpLanes, kSlotLogits = 8 * kWarpLanes;
  const int64_t spread = std::min(ceil_div(tokens, kRouteWave), kMaxWarps);
  const int64_t warps = std::max<int64_t>(tokens <= kMaxWarps ? tokens : spread, 1);
  const int64_t blocks = std::max<int64_t>(ceil_div(tokens, warps), 1);
  return {blocks, static_cast<int>(kWarpLanes * warps), blocks > kRouteWave,
          static_cast<int>(ceil_div(num_experts, kSlotLogits))};
}

}  // namespace longcat_ops
