// Reasons for and against each way to run a grouped matrix product, for `explain`.
#pragma once

#include <string>
#include <vector>

#include "check/arguments.h"
#include "gemm/config.h"

namespace longcat_ops {

// What bounds the time of a launch: in all, and on the SM with the most work.
struct ProductCounts {
  double memory_bytes = 0;   // every byte once
  double l2_bytes = 0;       // what all tiles fetch; a pair's tokens once
  double l2_shared = 0;      // tokens that a pair's second block gets without a fetch of its own
  double sm_bytes = 0;       // what the busiest SM fetches
  double sm_flops = 0;       // its products, tokens rounded up to a bucket
  double sm_smem_bytes = 0;  // what these read from shared memory: weights once for each pass, tokens for each slab
};

// One tile size, if all rows are spread evenly over the groups.
struct Candidate {
  MoeGemmConfig config;
  bool chosen = false;
  std::string reason;
  int64_t tiles = 0, waves = 0;  // waves: tiles of the busiest block, or of a piece of K each
  ProductCounts counts;
};

// The problem of an op's arguments, in each layout, FP8 or bf16; without rows where no kernel takes them.
MoeGemmProblem dense_problem(const Arguments& a);
MoeGemmProblem offset_problem(const Arguments& a);
MoeGemmProblem masked_problem(const Arguments& a);
MoeGemmProblem contiguous_problem(const Arguments& a);
MoeGemmProblem swiglu_problem(const Arguments& a);

std::vector<Candidate> moe_gemm_candidates(const MoeGemmProblem& problem);

}  // namespace longcat_ops
