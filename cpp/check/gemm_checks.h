// Checks that the matrix products share, whatever their operands: a [M, K] or [G, M, K], b [N, K] or [G, N, K].
#pragma once

#include "check/tensor_checks.h"

namespace longcat_ops {

// b's last size is the K of a.
void check_inner_size(const char* op, const char* name, const TensorDesc& b, const TensorDesc& a);

// What follows the operands in each layout's schema: indices, hints, split_k, out; the operands are already checked.
void check_dense_rest(const char* op, const Arguments& a);
void check_offset_rest(const char* op, const Arguments& a);
void check_masked_rest(const char* op, const Arguments& a);
void check_contiguous_rest(const char* op, const Arguments& a);
// With SwiGLU: offsets, hint, h [M, I] and sh. plain: the dtype of h without sh.
void check_swiglu_rest(const char* op, const Arguments& a, DType plain);

}  // namespace longcat_ops
