// Argument checks of the FP8 matrix products. Outputs may be null: `supports` asks before anything is allocated.
#pragma once

#include <optional>

#include "check/tensor_desc.h"

namespace longcat_ops {

// An FP8 operand: e4m3 values and their f32 scales.
struct Fp8Pair {
  const TensorDesc& values;
  const TensorDesc& scales;
};

void check_fp8_gemm_nt(Fp8Pair lhs, Fp8Pair rhs, int64_t split_k, const TensorDesc* out);
void check_m_grouped_fp8_gemm_nt_offset(Fp8Pair lhs, Fp8Pair rhs, const TensorDesc& offsets,
                                        std::optional<int64_t> max_m_hint, int64_t split_k, const TensorDesc* out);
void check_m_grouped_fp8_gemm_nt_masked(Fp8Pair lhs, Fp8Pair rhs, const TensorDesc& masked_m, int64_t expected_m,
                                        const TensorDesc* out);
void check_m_grouped_fp8_gemm_nt_contiguous(Fp8Pair lhs, Fp8Pair rhs, const TensorDesc& m_indices,
                                            const TensorDesc* out);
void check_interleave_gate_up(Fp8Pair gate_up, const TensorDesc* w_out, const TensorDesc* s_out);
void check_m_grouped_fp8_swiglu_gemm_nt_offset(Fp8Pair lhs, Fp8Pair gate_up, const TensorDesc& offsets,
                                               std::optional<int64_t> max_m_hint, const TensorDesc* h,
                                               const TensorDesc* sh);

// FP8 weights of G experts stacked, gate rows and up rows with scale blocks of their own: [G, 2I, K] and
// [G, 2 * ceil(I / 128), ceil(K / 128)].
void check_gate_up(const char* op, const char* name, const char* scales_name, Fp8Pair gate_up, const TensorDesc* like);
void check_stacked_weight(const char* op, const char* name, const char* scales_name, Fp8Pair weight,
                          const TensorDesc* like);

}  // namespace longcat_ops
