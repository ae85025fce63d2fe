// Checks of the stacked weights of G experts, FP8 or not, which products and the expert chain take.
#pragma once

#include "check/tensor_checks.h"

namespace longcat_ops {

// [G, N, K] with scales [G, ceil(N / 128), ceil(K / 128)]. like: an argument on the same device, if it has a tensor.
void check_stacked_weight(const char* op, const char* name, const char* scales_name, Fp8Pair weight, Named like);
// Gate rows and up rows [G, 2I, K], contiguous, of a dtype that the caller checks.
void check_gate_up_values(const char* op, const char* name, const TensorDesc& w, Named like);
// The same of e4m3, with scale blocks of their own: [G, 2 * ceil(I / 128), ceil(K / 128)].
void check_gate_up(const char* op, const char* name, const char* scales_name, Fp8Pair gate_up, Named like);

// Scales exist where the weight is e4m3, and only there.
void check_scales_given(const char* op, Named weight, Named scales, const char* fix = "");

// A weight of the chain over x: gate_up [G, 2I, H] or down [G, H, I], with scales if it is e4m3.
void check_expert_weight(const char* op, const char* name, const char* scales_name, const TensorDesc& w,
                         const TensorDesc* scales, bool is_gate_up, const TensorDesc& x);

}  // namespace longcat_ops
