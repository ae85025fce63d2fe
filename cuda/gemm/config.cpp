#include "gemm/config.h"

#include <algorithm>

#include "common/numeric.h"

namespace longcat_ops {

using namespace moe_gemm;

namespace {

// The most tiles possible: every active group but one has a single row.
int64_t most_tiles(const MoeGemmProblem& problem, uint32_t tile_rows, uint32_t max_tokens) {
  const int64_t others = std::min(problem.groups, problem.rows) - 1;
  return (others + ceil_div(problem.rows - others, max_tokens)) * ceil_div(problem.n, tile_rows);
}

constexpr uint32_t kPairTokens = 128;

// NOTE: from 128 tokens up, a tile's tokens are as many bytes as its weights, so L2 limits tiles that fetch their own.
// A pair must not give the busiest SM more tiles: if weight tiles are odd in number, the last pair has one without
// rows.
bool pays_to_pair(const MoeGemmProblem& problem, uint32_t max_tokens, int64_t chunks) {
  if (max_tokens < kPairTokens || problem.n <= kTileRows || problem.sms < 2) return false;
  const int64_t tiles = chunks * ceil_div(problem.n, kTileRows), pairs = chunks * ceil_div(problem.n, 2 * kTileRows);
  return ceil_div(pairs, problem.resident_clusters(2)) <= ceil_div(tiles, problem.sms);
}

}  // namespace

// NOTE: without an estimate, four times the mean. Routing to many experts is close to a Poisson process, and from a
// mean of 8 up the largest of 512 groups stays below that.
int64_t expected_rows(const MoeGemmProblem& problem) {
  constexpr int64_t kSkew = 4;
  const int64_t mean =
      problem.mean_rows >= 0 ? problem.mean_rows : ceil_div(problem.rows, std::max<int64_t>(problem.groups, 1));
  const int64_t bound = std::max<int64_t>(problem.group_rows, 1);
  if (problem.max_rows >= 0) return std::clamp<int64_t>(problem.max_rows, 1, bound);
  return mean < bound / kSkew ? std::max<int64_t>(kSkew * mean, 1) : bound;
}

uint32_t most_tokens(const MoeGemmProblem& problem) {
  return problem.split_k > 1 ? kSmallTokens : problem.swiglu ? kSwigluTokens : kMaxTokens;
}

MoeGemmConfig make_moe_gemm_config(const MoeGemmProblem& problem, uint32_t tile_rows, uint32_t max_tokens,
                                   bool paired) {
  MoeGemmConfig config;
  config.paired = paired;
  config.tile_rows = tile_rows;
  config.max_tokens = max_tokens;
  config.small = max_tokens == kSmallTokens;
  // NOTE: the small instance leaves room for blocks of the kernel ahead, which programmatic dependent launch overlaps.
  constexpr uint32_t kSmallSmem = 200 * 1024;
  const uint32_t limit = config.small ? kSmallSmem : kMaxBlockSmem;
  const auto smem_bytes = [&](uint32_t stages) {
    return make_smem_layout(problem.operand, tile_rows, max_tokens, stages, static_cast<uint32_t>(problem.split_k),
                            problem.quantised)
        .bytes;
  };
  config.stages = kMaxStages;
  while (smem_bytes(config.stages) > limit) --config.stages;
  config.smem_bytes = smem_bytes(config.stages);
  if (problem.rows == 0 || problem.groups == 0) return config;

  // NOTE: no more blocks than are resident, or a second wave would have as much to do as the first.
  const int64_t cluster = paired ? 2 : problem.split_k;
  const int64_t resident = cluster > 1 ? problem.resident_clusters(cluster) : problem.sms;
  config.grid = cluster * std::min(resident, most_tiles(problem, paired ? 2 * tile_rows : tile_rows, max_tokens));
  return config;
}

MoeGemmConfig choose_moe_gemm_config(const MoeGemmProblem& problem) {
  uint32_t max_tokens = kSmallTokens;
  if (problem.mapped)
    while (max_tokens < expected_rows(problem) && max_tokens < most_tokens(problem)) max_tokens *= 2;
  if (problem.swiglu) return make_moe_gemm_config(problem, kSwigluTileRows, max_tokens);
  // NOTE: a smaller tile can put more SMs (clusters) to work. It has half the weight rows or, if its tokens are as many
  // bytes as its weights, fewer tokens.
  const auto chunks = [&] {
    return std::min(problem.groups, problem.rows) * ceil_div(expected_rows(problem), max_tokens);
  };
  const int64_t workers = problem.split_k > 1 ? problem.resident_clusters(problem.split_k) : problem.sms;
  const bool few = problem.mapped && 2 * chunks() * ceil_div(problem.n, kTileRows) <= workers;
  if (few && max_tokens < kPairTokens) return make_moe_gemm_config(problem, kFewTileRows, max_tokens);
  if (few) max_tokens = kPairTokens;
  return make_moe_gemm_config(problem, kTileRows, max_tokens, pays_to_pair(problem, max_tokens, chunks()));
}

}  // namespace longcat_ops
