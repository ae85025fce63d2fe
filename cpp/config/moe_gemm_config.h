// How the grouped FP8 products run: a pure function of the sizes, for the launcher and for `explain`.
#pragma once

#include <cstdint>

namespace longcat_ops {

struct MoeGemmProblem {
  int64_t groups = 1;
  int64_t rows = 0;      // of all groups at most
  int64_t max_rows = 0;  // of one group, as far as is known; never changes a result
  int64_t n = 0, k = 0;
  bool mapped = true;  // tensor maps describe both operands
  int sms = 132;
  int max_stages = 12;
};

struct MoeGemmConfig {
  uint32_t max_tokens = 0;  // of a tile; a larger group takes several, which read its weights again
  uint32_t stages = 0;
  uint32_t smem_bytes = 0;
  bool small = false;  // the instance for few tokens
  int64_t grid = 0;    // 0: nothing to do
};

MoeGemmConfig choose_moe_gemm_config(const MoeGemmProblem& problem);

}  // namespace longcat_ops
