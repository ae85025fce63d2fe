// What speaks for and against each way to run an FP8 matrix product, for `explain`.
#pragma once

#include <string>
#include <vector>

#include "check/tensor_desc.h"
#include "gemm/config.h"

namespace longcat_ops {

struct Prediction {
  const char* device;
  double microseconds;
  const char* bound;  // "memory", "L2", "loads of an SM" or "tensor cores"
};

// One size of tile, if all rows are spread evenly over the groups.
struct Candidate {
  MoeGemmConfig config;
  bool chosen = false;
  std::string reason;
  int64_t tiles = 0, waves = 0;  // waves: tiles of the busiest block, or of a piece of K each
  std::vector<Prediction> predictions;
};

// The problem of rows a [M, K] or [G, M, K] and weights b [N, K] or [G, N, K]; what an op knows besides is left unset.
MoeGemmProblem moe_gemm_problem(const TensorDesc& a, const TensorDesc& b);

std::vector<Candidate> moe_gemm_candidates(const MoeGemmProblem& problem);

}  // namespace longcat_ops
