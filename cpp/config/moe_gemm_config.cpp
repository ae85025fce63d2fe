#include "config/moe_gemm_config.h"

#include <algorithm>

#include "base/numeric.h"
#include "moe_gemm/plan.h"

namespace longcat_ops {
namespace {

using namespace moe_gemm;

// NOTE: the small instance leaves room for blocks of the kernel ahead, which programmatic dependent launch overlaps.
constexpr uint32_t kSmallSmem = 200 * 1024;

}  // namespace

MoeGemmConfig choose_moe_gemm_config(const MoeGemmProblem& problem) {
  MoeGemmConfig config;
  const int64_t rows = std::clamp<int64_t>(problem.max_rows, 1, std::max<int64_t>(problem.rows, 1));
  config.max_tokens = kSmallTokens;
  if (problem.mapped)
    while (config.max_tokens < rows && config.max_tokens < kMaxTokens) config.max_tokens *= 2;
  config.small = config.max_tokens == kSmallTokens;

  const uint32_t limit = config.small ? kSmallSmem : kMaxSmem;
  config.stages = static_cast<uint32_t>(problem.max_stages);
  while (make_smem_plan(config.max_tokens, config.stages).bytes > limit) --config.stages;
  config.smem_bytes = make_smem_plan(config.max_tokens, config.stages).bytes;

  // Every group's tiles at once, if all have rows; each row belongs to one group.
  const int64_t active = std::min(problem.groups, problem.rows);
  const int64_t chunks = active + problem.rows / config.max_tokens;
  config.grid = std::min<int64_t>(problem.sms, chunks * ceil_div(problem.n, kTileRows));
  if (problem.rows == 0 || problem.groups == 0) config.grid = 0;
  return config;
}

}  // namespace longcat_ops
