// Argument checks of the quantisation ops.
#pragma once

#include "check/arguments.h"

namespace longcat_ops {

void check_per_token_group_quant_fp8(const Arguments& a);
void check_per_block_quant_fp8(const Arguments& a);
void check_silu_and_mul_quant_fp8(const Arguments& a);
void check_dequant_fp8(const Arguments& a);

// dequant_fp8 tells its two granularities apart by the shape of s: [N, ceil(K / group_size)] is one row of scales per
// row of q, else s is by 128 x 128 blocks. No N but 0 and 1 equals ceil(N / 128), and there both readings agree.
bool scales_are_per_row(const TensorDesc& q, const TensorDesc& s, int64_t group_size);

}  // namespace longcat_ops
