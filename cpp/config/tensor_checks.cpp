#include "config/tensor_checks.h"

#include "base/check.h"

namespace longcat_ops {

std::string describe(const char* name, const TensorDesc& tensor) {
  return text(name, ": ", desc_text(tensor), " on ", device_text(tensor));
}

bool is_floating(DType dtype) {
  return dtype == DType::kBFloat16 || dtype == DType::kFloat16 || dtype == DType::kFloat32;
}

void check_device(const char* op, const char* name, const TensorDesc& tensor) {
  LC_CHECK(tensor.device != DeviceKind::kOther, op, name, "on another device type", "a tensor on cpu or cuda",
           desc_text(tensor), "move it with .cpu() or .cuda()");
}

void check_same_device(const char* op, const char* name, const TensorDesc& tensor, const char* input_name,
                       const TensorDesc& input) {
  LC_CHECK(tensor.device == input.device && tensor.device_index == input.device_index, op, name,
           "on " + device_text(tensor), "on " + device_text(input) + text(", the device of `", input_name, "`"),
           describe(input_name, input), "");
}

void check_rank_2(const char* op, const char* name, const TensorDesc& tensor, const char* layout) {
  LC_CHECK(tensor.dim == 2, op, name, text(tensor.dim, "-D ", shape_text(tensor)), text("2-D ", layout), "",
           "reshape it to two dimensions, for example .reshape(-1, width)");
}

void check_unit_inner_stride(const char* op, const char* name, const TensorDesc& tensor) {
  LC_CHECK(tensor.strides[1] == 1 || tensor.sizes[0] == 0 || tensor.sizes[1] <= 1, op, name,
           "of strides " + strides_text(tensor), "a last stride of 1", describe(name, tensor),
           text(name, ".contiguous()"));
}

void check_rows_do_not_overlap(const char* op, const char* name, const TensorDesc& tensor) {
  LC_CHECK(tensor.sizes[0] <= 1 || tensor.strides[0] >= tensor.sizes[1], op, name, "of strides " + strides_text(tensor),
           text("a row stride of at least ", tensor.sizes[1]), describe(name, tensor),
           "pass an output whose rows do not overlap");
}

void check_dtype(const char* op, const char* name, const TensorDesc& tensor, DType expected) {
  LC_CHECK(tensor.dtype == expected, op, name, dtype_name(tensor.dtype), dtype_name(expected), describe(name, tensor),
           "");
}

void check_shape(const char* op, const char* name, const TensorDesc& tensor, int64_t rows, int64_t columns,
                 const char* input_name, const TensorDesc& input) {
  LC_CHECK(tensor.dim == 2 && tensor.sizes[0] == rows && tensor.sizes[1] == columns, op, name,
           "of shape " + shape_text(tensor), text("[", rows, ", ", columns, "]"), describe(input_name, input), "");
}

}  // namespace longcat_ops
