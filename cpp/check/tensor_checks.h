// Checks that several ops make of one tensor. `like` is the argument whose device or shape the others follow.
#pragma once

#include <initializer_list>
#include <string>

#include "check/arguments.h"
#include "common/constants.h"

namespace longcat_ops {

// An argument and its name. The tensor is null for an absent optional argument, or an output that is not allocated yet.
struct Named {
  const char* name;
  const TensorDesc* tensor;
};

constexpr int64_t kWidthMultiple = 8;  // 16 bytes of bf16

std::string describe(const char* name, const TensorDesc& tensor);  // "x: torch.bfloat16 [7, 128] on cpu"
bool is_floating(DType dtype);                                     // bfloat16, float16 or float32

void check_device(const char* op, const char* name, const TensorDesc& tensor);
// fix: the advice if the rank alone does not tell how to get there.
void check_rank(const char* op, const char* name, const TensorDesc& tensor, int rank, const char* layout,
                const char* fix = "");
void check_dtype(const char* op, const char* name, const TensorDesc& tensor, DType expected);
void check_floating(const char* op, const char* name, const TensorDesc& tensor);
// One size of a tensor must be a positive multiple, by default of 8 elements. layout: "[N, K]"; size_name: "N".
void check_multiple(const char* op, const char* name, const TensorDesc& tensor, int dimension, const char* layout,
                    const char* size_name, int64_t multiple = kWidthMultiple);
void check_shape(const char* op, const char* name, const TensorDesc& tensor, std::initializer_list<int64_t> sizes,
                 Named like);

// The address must be a multiple of the element size, which C++ requires of any access, and every element must lie in
// the memory behind the tensor, which its owner may have freed or shrunk.
void check_memory(const char* op, const char* name, const TensorDesc& tensor);

void check_same_device(const char* op, Named argument, Named like);

// Checks device, dtype, shape and memory of an argument that follows `like`; the checks below see to strides.
void check_operand(const char* op, Named argument, DType dtype, std::initializer_list<int64_t> sizes, Named like);

// Checks an op's first tensor. Any of its sizes is legal, so only device, rank and memory are checked.
void check_lead(const char* op, Named argument, int rank, const char* layout, const char* fix = "");

void check_contiguous(const char* op, const char* name, const TensorDesc& tensor);
// Rows may be any distance apart; the elements of a row must be adjacent.
void check_unit_inner_stride(const char* op, const char* name, const TensorDesc& tensor);

// Checks of outputs: no two elements share an address, and none lies on another argument. The arguments are those of
// the schema, or a list if users know them by other names.
void check_elements_apart(const char* op, const char* name, const TensorDesc& tensor);
void check_no_alias(const char* op, const Arguments& a);
void check_no_alias(const char* op, std::initializer_list<Named> inputs, Named output);

// An output [..., width]: elements of a row are adjacent, and no two elements share an address.
void check_output_rows(const char* op, Named output, DType dtype, std::initializer_list<int64_t> sizes, Named like);

}  // namespace longcat_ops
