// Argument checks of the FP8 matrix products.
#pragma once

#include "check/arguments.h"

namespace longcat_ops {

void check_fp8_gemm_nt(const Arguments& a);
void check_m_grouped_fp8_gemm_nt_offset(const Arguments& a);
void check_m_grouped_fp8_gemm_nt_masked(const Arguments& a);
void check_m_grouped_fp8_gemm_nt_contiguous(const Arguments& a);
void check_interleave_gate_up(const Arguments& a);
void check_m_grouped_fp8_swiglu_gemm_nt_offset(const Arguments& a);

// FP8 weights of G experts stacked, gate rows and up rows with scale blocks of their own: [G, 2I, K] and
// [G, 2 * ceil(I / 128), ceil(K / 128)].
void check_gate_up(const char* op, const char* name, const char* scales_name, Fp8Pair gate_up, const TensorDesc* like);
void check_stacked_weight(const char* op, const char* name, const char* scales_name, Fp8Pair weight,
                          const TensorDesc* like);

}  // namespace longcat_ops
