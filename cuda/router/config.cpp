#include "router/config.h"

#include "common/constants.h"
#include "common/numeric.h"

namespace longcat_ops {

using namespace router;

RouterGemmConfig choose_router_gemm_config(int64_t tokens, int64_t experts, int64_t columns, Tokens how) {
  RouterGemmConfig config;
  config.tiles = ceil_div(experts, kTileExperts);
  // NOTE: pieces put SMs to work: few tiles would leave most of the memory's rate unused. 8 is the most that every
  // device takes in a cluster.
  const int64_t blocks = ceil_div(columns, kStageColumns);
  while (config.pieces < kMostPieces && 2 * config.pieces * config.tiles <= kH100Sms && 2 * config.pieces <= blocks)
    config.pieces *= 2;
  config.width = how == Tokens::kMapped ? 8 : kSlowTokens;
  if (how == Tokens::kMapped)
    while (config.width < tokens && config.width < kMostTokens) config.width *= 2;
  config.chunks = ceil_div(tokens, config.width);
  uint32_t stages = kMaxStages;
  while (make_smem_layout(config.width, terms(how), stages).bytes > kMaxBlockSmem) --stages;
  config.smem = make_smem_layout(config.width, terms(how), stages);
  return config;
}

}  // namespace longcat_ops
