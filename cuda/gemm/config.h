// How the matrix products run: a pure function of the sizes, for the launcher and for `explain`.
#pragma once

#include <cstdint>

#include "common/constants.h"
#include "gemm/layout.h"

namespace longcat_ops {

struct MoeGemmProblem {
  int64_t groups = 1;
  int64_t rows = 0;        // most rows of all groups together
  int64_t group_rows = 0;  // most rows of one group
  int64_t mean_rows = -1;  // typical rows of one group; -1: rows / groups
  int64_t max_rows = -1;   // caller's estimate of the largest group; -1: none
  int64_t n = 0, k = 0;
  moe_gemm::Operand operand = moe_gemm::Operand::kFp8;
  int64_t split_k = 1;    // pieces of K, one for each block of a cluster; changes results
  bool mapped = true;     // tensor maps describe both operands
  bool swiglu = false;    // n counts rows of gate and up; SwiGLU follows their products
  bool quantised = true;  // what SwiGLU gives is e4m3, else bf16
  int sms = kTypicalSms;
  int clusters = -1;  // resident clusters of split_k blocks, or of two without a split; -1: a typical device's

  int resident_clusters(int64_t size) const {
    return clusters > 0 ? clusters : typical_clusters(sms, static_cast<int>(size));
  }
};

struct MoeGemmConfig {
  uint32_t tile_rows = 0;   // weight rows per tile
  uint32_t max_tokens = 0;  // per tile; a larger group takes several tiles, which read its weights again
  uint32_t stages = 0;
  uint32_t smem_bytes = 0;
  bool small = false;   // the instance for few tokens
  bool paired = false;  // clusters of two blocks share the tokens of neighbouring weight tiles
  int64_t grid = 0;     // a multiple of split_k, or of 2 in pairs; 0: nothing to do
};

// Rows that a tile should hold: those expected of the largest group. Neither this nor the tile changes a result.
int64_t expected_rows(const MoeGemmProblem& problem);

// Most tokens per tile for this problem.
uint32_t most_tokens(const MoeGemmProblem& problem);

MoeGemmConfig make_moe_gemm_config(const MoeGemmProblem& problem, uint32_t tile_rows, uint32_t max_tokens,
                                   bool paired = false);
MoeGemmConfig choose_moe_gemm_config(const MoeGemmProblem& problem);

}  // namespace longcat_ops
