// Checks that routing, dispatch and combine share.
#pragma once

#include "check/tensor_checks.h"

namespace longcat_ops {

// Contiguous, of this dtype and these sizes.
void check_dense(const char* op, Named tensor, DType dtype, std::initializer_list<int64_t> sizes, Named like);

// K of [T, K].
void check_top_k(const char* op, const char* name, const TensorDesc& ids);

// ids i32 [T, K], contiguous, few enough choices for 32 bits.
void check_choices(const char* op, const TensorDesc& ids);

// x [T, H] of any floating dtype, rows any distance apart.
void check_tokens(const char* op, const char* name, const TensorDesc& x, const char* layout);

}  // namespace longcat_ops
