// How the FP8 matrix products run: a pure function of the sizes, for the launcher and for `explain`.
#pragma once

#include <cstdint>

#include "common/constants.h"
#include "gemm/layout.h"

namespace longcat_ops {

struct MoeGemmProblem {
  int64_t groups = 1;
  int64_t rows = 0;        // of all groups together, at most
  int64_t group_rows = 0;  // of one group, at most
  int64_t mean_rows = -1;  // of one group, typically; -1: rows / groups
  int64_t max_rows = -1;   // of one group, as the caller estimates it; -1: no estimate
  int64_t n = 0, k = 0;
  int64_t split_k = 1;  // pieces of K, one for each block of a cluster; changes results
  bool mapped = true;   // tensor maps describe both operands
  bool swiglu = false;  // n rows of gate and up, and what follows their products
  int sms = kTypicalSms;
  int clusters = -1;  // resident at once: of split_k blocks, or of two without a split; -1: as on a typical device

  int resident_clusters(int64_t size) const {
    return clusters > 0 ? clusters : typical_clusters(sms, static_cast<int>(size));
  }
};

struct MoeGemmConfig {
  uint32_t tile_rows = 0;   // of a weight
  uint32_t max_tokens = 0;  // of a tile; a larger group takes several, which read its weights again
  uint32_t stages = 0;
  uint32_t smem_bytes = 0;
  bool small = false;   // the instance for few tokens
  bool paired = false;  // clusters of two blocks, which share the tokens of neighbouring weight tiles
  int64_t grid = 0;     // a multiple of split_k, or of 2 in pairs; 0: nothing to do
};

// Rows of the largest group that a tile should hold. Neither this nor the tile changes a result.
int64_t expected_rows(const MoeGemmProblem& problem);

// Of a tile that this problem can have.
uint32_t most_tokens(const MoeGemmProblem& problem);

MoeGemmConfig make_moe_gemm_config(const MoeGemmProblem& problem, uint32_t tile_rows, uint32_t max_tokens,
                                   bool paired = false);
MoeGemmConfig choose_moe_gemm_config(const MoeGemmProblem& problem);

}  // namespace longcat_ops
