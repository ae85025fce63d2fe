#include "cost/moe_gemm_explain.h"

#include <algorithm>

#include "check/error.h"
#include "common/numeric.h"
#include "cost/explain.h"
#include "gemm/layout.h"

namespace longcat_ops {
namespace {

using namespace moe_gemm;

ProductCounts count(const MoeGemmProblem& p, const Candidate& candidate, int64_t active, int64_t chunks,
                    uint32_t bucket) {
  const uint32_t tile_rows = candidate.config.tile_rows;
  const int64_t row = p.k * operand_bytes(p.operand);  // bytes of a row of operands
  const int64_t stages_of_k = ceil_div(row, kBlockK), scaled = p.operand == Operand::kFp8;
  const double weights = static_cast<double>(active) * p.n * row;
  const double h = p.quantised ? p.n / 2 + 4.0 * ceil_div(p.n / 2, kQuantBlock) : p.n;
  const double output = p.swiglu ? h : 2.0 * p.n;  // bytes per row
  const double tokens = static_cast<double>(p.rows) * (row + 4.0 * scaled * stages_of_k + output);
  const double tile_tokens = static_cast<double>(stages_of_k) * bucket * kBlockK;  // token bytes per tile
  const double fetched = static_cast<double>(candidate.tiles) / (candidate.config.paired ? 2 : 1);  // tiles that fetch
  const double stages = static_cast<double>(candidate.waves * ceil_div(stages_of_k, p.split_k));    // of the busiest SM
  const double passes = bucket > kPassTokens ? 2 : 1, slabs = tile_rows / kWarpgroupRows;
  ProductCounts counts;
  counts.memory_bytes = weights + tokens;
  counts.l2_bytes = chunks * weights + fetched * tile_tokens;
  counts.l2_shared = (candidate.tiles - fetched) * tile_tokens;
  counts.sm_bytes = stages * (tile_rows + bucket) * kBlockK;
  counts.sm_flops = stages * 2.0 * tile_rows * bucket * kBlockK / operand_bytes(p.operand);
  counts.sm_smem_bytes = stages * (tile_rows * passes + slabs * bucket) * kBlockK;
  return counts;
}

bool is_same(const MoeGemmConfig& a, const MoeGemmConfig& b) {
  return a.tile_rows == b.tile_rows && a.max_tokens == b.max_tokens && a.paired == b.paired;
}

std::string reason_of(const MoeGemmProblem& p, const MoeGemmConfig& config, const MoeGemmConfig& best) {
  const int64_t expected = expected_rows(p), tiles = ceil_div(expected, config.max_tokens);
  const bool chosen = is_same(config, best);
  const char* why = p.max_rows >= 0 ? " rows, the caller's estimate" : " rows, four times the mean or all there are";
  if (!p.mapped)
    return chosen ? "rows are not on 16-byte boundaries: warps copy them, slowly" : "needs rows on 16-byte boundaries";
  if (config.tile_rows != best.tile_rows)
    return config.tile_rows == kFewTileRows ? "half the height: tokens are read twice as often"
           : p.split_k > 1                  ? "too few tiles for all clusters"
                                            : "too few tiles for all SMs";
  if (p.split_k > 1)
    return text("clusters of ", p.split_k, " blocks share K; a group of ", expected, why, ", takes ", tiles, " tiles");
  if (config.paired && config.max_tokens == best.max_tokens && !chosen)
    return p.n <= kTileRows ? "there is one weight tile, so nobody to share tokens with"
                            : "an odd number of weight tiles would leave more blocks without work";
  if (!config.paired && best.paired && config.max_tokens == best.max_tokens)
    return "each tile would fetch its own tokens from L2, as many bytes as its weights or more";
  if (chosen && config.paired) return text("two blocks share the tokens, up to ", expected, why);
  if (config.max_tokens > best.max_tokens && expected > best.max_tokens) return "too few tiles for all SMs";
  if (chosen && tiles > 1 && config.max_tokens < most_tokens(p))
    return text("a group of ", expected, why, ", is cut into ", tiles, " tiles to put more SMs to work");
  if (chosen && tiles > 1) return text("the largest; a group of ", expected, why, ", takes ", tiles, " tiles");
  if (chosen) return text("the smallest that holds a group of ", expected, why);
  if (tiles > 1) return text("a group of ", expected, why, ", would read its weights ", tiles, " times");
  return text("larger than a group of ", expected, why, "; fewer stages");
}

// The problem of rows a [M, K] or [G, M, K] and weights b [N, K] or [G, N, K]. None for float32 operands, which no
// kernel takes.
MoeGemmProblem operands_problem(const Arguments& arguments, const char* weight) {
  const TensorDesc &a = arguments.tensor("a"), &b = arguments.tensor(weight);
  const int last = a.dim - 1;
  const auto on_16_bytes = [](const TensorDesc& t) {
    bool aligned = t.address % 16 == 0;
    for (int i = 0; i < t.dim - 1; ++i) aligned &= t.sizes[i] <= 1 || t.strides[i] * element_size(t.dtype) % 16 == 0;
    return aligned;
  };
  MoeGemmProblem problem;
  if (a.dtype == DType::kFloat32) return problem;
  problem.operand = a.dtype == DType::kBFloat16 ? Operand::kBf16 : Operand::kFp8;
  problem.groups = b.dim == 3 ? b.sizes[0] : 1;
  problem.group_rows = a.sizes[last - 1];
  problem.rows = a.dim == 3 ? a.sizes[0] * a.sizes[1] : a.sizes[0];
  problem.n = b.sizes[b.dim - 2];
  problem.k = b.sizes[b.dim - 1];
  problem.mapped = on_16_bytes(a) && on_16_bytes(b);
  return problem;
}

}  // namespace

MoeGemmProblem dense_problem(const Arguments& a) {
  MoeGemmProblem problem = operands_problem(a, "b");
  problem.split_k = a.integer("split_k");
  return problem;
}
MoeGemmProblem offset_problem(const Arguments& a) {
  MoeGemmProblem problem = dense_problem(a);
  problem.max_rows = a.optional_integer("max_m_hint").value_or(problem.max_rows);
  return problem;
}
MoeGemmProblem masked_problem(const Arguments& a) {
  MoeGemmProblem problem = operands_problem(a, "b");
  problem.mean_rows = a.integer("expected_m");
  return problem;
}
MoeGemmProblem contiguous_problem(const Arguments& a) { return operands_problem(a, "b"); }
MoeGemmProblem swiglu_problem(const Arguments& a) {
  MoeGemmProblem problem = operands_problem(a, "gate_up");
  problem.swiglu = true;
  problem.quantised = a.optional_tensor("sh") != nullptr;
  problem.max_rows = a.optional_integer("max_m_hint").value_or(problem.max_rows);
  return problem;
}

std::vector<Candidate> moe_gemm_candidates(const MoeGemmProblem& problem) {
  std::vector<Candidate> candidates;
  const int64_t active = std::min(problem.groups, problem.rows);
  if (active == 0) return candidates;
  const int64_t rows = ceil_div(problem.rows, active);
  const MoeGemmConfig best = choose_moe_gemm_config(problem);
  const auto add = [&](const MoeGemmConfig& config) {
    Candidate candidate;
    candidate.config = config;
    candidate.chosen = is_same(config, best);
    candidate.reason = reason_of(problem, config, best);
    const int64_t chunks = ceil_div(rows, config.max_tokens), blocks = config.paired ? 2 : 1;
    candidate.tiles = active * chunks * blocks * ceil_div(problem.n, blocks * config.tile_rows);
    candidate.waves = ceil_div(candidate.tiles, config.grid / problem.split_k);
    const uint32_t bucket = bucket_for(static_cast<uint32_t>(std::min<int64_t>(rows, config.max_tokens)));
    candidate.counts = count(problem, candidate, active, chunks, bucket);
    candidates.push_back(std::move(candidate));
  };
  for (const uint32_t tile_rows : {kSwigluTileRows, kTileRows, kFewTileRows}) {
    if ((tile_rows == kSwigluTileRows) != problem.swiglu) continue;
    for (uint32_t max_tokens = kSmallTokens; max_tokens <= most_tokens(problem); max_tokens *= 2)
      add(make_moe_gemm_config(problem, tile_rows, max_tokens));
  }
  if (problem.swiglu || problem.split_k > 1) return candidates;
  for (const uint32_t max_tokens : {kMaxTokens / 2, kMaxTokens})
    add(make_moe_gemm_config(problem, kTileRows, max_tokens, true));
  return candidates;
}

}  // namespace longcat_ops
