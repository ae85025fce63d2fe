#include "config/quant_check.h"

#include "base/check.h"
#include "base/numeric.h"

namespace longcat_ops {
namespace {

constexpr int64_t kWidthMultiple = 8;

std::string describe(const char* name, const TensorDesc& tensor) {
  return text(name, ": ", desc_text(tensor), " on ", device_text(tensor));
}

bool is_quantisable(DType dtype) {
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

// Rows may be any distance apart; the elements of a row must be adjacent and rows must not overlap when written.
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

void check_quant_input(const char* op, const char* name, const TensorDesc& x, const char* layout) {
  check_device(op, name, x);
  check_rank_2(op, name, x, layout);
  LC_CHECK(is_quantisable(x.dtype), op, name, dtype_name(x.dtype), "torch.bfloat16, torch.float16 or torch.float32",
           describe(name, x), text(name, ".float()"));
  LC_CHECK(x.sizes[1] % kWidthMultiple == 0, op, name, text("of width ", x.sizes[1]),
           text("a multiple of ", kWidthMultiple), describe(name, x), "pad the last dimension with zeros");
  check_unit_inner_stride(op, name, x);
}

void check_quantised_output(const char* op, const TensorDesc& q, const char* input_name, const TensorDesc& input) {
  check_same_device(op, "q", q, input_name, input);
  check_dtype(op, "q", q, DType::kFloat8E4M3);
  check_shape(op, "q", q, input.sizes[0], input.sizes[1], input_name, input);
  check_unit_inner_stride(op, "q", q);
  check_rows_do_not_overlap(op, "q", q);
}

void check_group_size(const char* op, int64_t group_size) {
  LC_CHECK(group_size > 0 && group_size % kWidthMultiple == 0, op, "group_size", std::to_string(group_size),
           text("a positive multiple of ", kWidthMultiple), "", "use 128, the group of the published checkpoints");
}

}  // namespace

bool scales_are_per_row(const TensorDesc& q, const TensorDesc& s, int64_t group_size) {
  return s.sizes[0] == q.sizes[0] && s.sizes[1] == ceil_div(q.sizes[1], group_size);
}

void check_per_token_group_quant_fp8(const TensorDesc& x, int64_t group_size, const TensorDesc* q,
                                     const TensorDesc* s) {
  static constexpr const char* kOp = "per_token_group_quant_fp8";
  check_quant_input(kOp, "x", x, "[T, H]");
  check_group_size(kOp, group_size);
  if (q) check_quantised_output(kOp, *q, "x", x);
  if (s) {
    check_same_device(kOp, "s", *s, "x", x);
    check_dtype(kOp, "s", *s, DType::kFloat32);
    const int64_t groups = ceil_div(x.sizes[1], group_size);
    LC_CHECK(s->dim == 2 && s->sizes[0] == x.sizes[0] && s->sizes[1] == groups, kOp, "s", "of shape " + shape_text(*s),
             text("[", x.sizes[0], ", ", groups, "]"), text(describe("x", x), ", group_size: ", group_size), "");
  }
}

void check_per_block_quant_fp8(const TensorDesc& w, const TensorDesc* q, const TensorDesc* s) {
  static constexpr const char* kOp = "per_block_quant_fp8";
  check_quant_input(kOp, "w", w, "[N, K]");
  if (q) check_quantised_output(kOp, *q, "w", w);
  if (s) {
    check_same_device(kOp, "s", *s, "w", w);
    check_dtype(kOp, "s", *s, DType::kFloat32);
    check_shape(kOp, "s", *s, ceil_div(w.sizes[0], kQuantBlock), ceil_div(w.sizes[1], kQuantBlock), "w", w);
  }
}

void check_dequant_fp8(const TensorDesc& q, const TensorDesc& s, int64_t group_size, const TensorDesc* out) {
  static constexpr const char* kOp = "dequant_fp8";
  check_device(kOp, "q", q);
  check_rank_2(kOp, "q", q, "[N, K]");
  check_dtype(kOp, "q", q, DType::kFloat8E4M3);
  check_unit_inner_stride(kOp, "q", q);
  check_group_size(kOp, group_size);
  check_same_device(kOp, "s", s, "q", q);
  check_dtype(kOp, "s", s, DType::kFloat32);
  check_rank_2(kOp, "s", s, "scales");
  const int64_t rows = q.sizes[0], columns = q.sizes[1];
  const bool per_row = scales_are_per_row(q, s, group_size);
  const bool per_block = s.sizes[0] == ceil_div(rows, kQuantBlock) && s.sizes[1] == ceil_div(columns, kQuantBlock);
  LC_CHECK(
      per_row || per_block, kOp, "s", "of shape " + shape_text(s),
      text("[", rows, ", ", ceil_div(columns, group_size), "] (one scale per row and ", group_size, " columns) or [",
           ceil_div(rows, kQuantBlock), ", ", ceil_div(columns, kQuantBlock), "] (one per 128 x 128 block)"),
      describe("q", q), "pass the scales returned with q");
  if (!out) return;
  check_same_device(kOp, "out", *out, "q", q);
  LC_CHECK(is_quantisable(out->dtype), kOp, "dtype", dtype_name(out->dtype),
           "torch.bfloat16, torch.float16 or torch.float32", describe("q", q), "");
  check_shape(kOp, "out", *out, rows, columns, "q", q);
  check_unit_inner_stride(kOp, "out", *out);
  check_rows_do_not_overlap(kOp, "out", *out);
}

}  // namespace longcat_ops
