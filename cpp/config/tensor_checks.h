// Checks that several ops make of one tensor. `input` is the argument whose device or shape the others follow.
#pragma once

#include <string>

#include "config/tensor_desc.h"

namespace longcat_ops {

std::string describe(const char* name, const TensorDesc& tensor);  // "x: torch.bfloat16 [7, 128] on cpu"
bool is_floating(DType dtype);                                     // bfloat16, float16 or float32

void check_device(const char* op, const char* name, const TensorDesc& tensor);
void check_same_device(const char* op, const char* name, const TensorDesc& tensor, const char* input_name,
                       const TensorDesc& input);
void check_rank_2(const char* op, const char* name, const TensorDesc& tensor, const char* layout);
void check_dtype(const char* op, const char* name, const TensorDesc& tensor, DType expected);
void check_shape(const char* op, const char* name, const TensorDesc& tensor, int64_t rows, int64_t columns,
                 const char* input_name, const TensorDesc& input);

// Rows may be any distance apart; the elements of a row must be adjacent and rows must not overlap when written.
void check_unit_inner_stride(const char* op, const char* name, const TensorDesc& tensor);
void check_rows_do_not_overlap(const char* op, const char* name, const TensorDesc& tensor);

}  // namespace longcat_ops
