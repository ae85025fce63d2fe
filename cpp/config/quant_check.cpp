#include "config/quant_check.h"

#include "base/check.h"
#include "base/numeric.h"
#include "config/tensor_checks.h"

namespace longcat_ops {
namespace {

constexpr int64_t kWidthMultiple = 8;

void check_quant_input(const char* op, const char* name, const TensorDesc& x, const char* layout) {
  check_device(op, name, x);
  check_rank_2(op, name, x, layout);
  LC_CHECK(is_floating(x.dtype), op, name, dtype_name(x.dtype), "torch.bfloat16, torch.float16 or torch.float32",
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
  LC_CHECK(is_floating(out->dtype), kOp, "dtype", dtype_name(out->dtype),
           "torch.bfloat16, torch.float16 or torch.float32", describe("q", q), "");
  check_shape(kOp, "out", *out, rows, columns, "q", q);
  check_unit_inner_stride(kOp, "out", *out);
  check_rows_do_not_overlap(kOp, "out", *out);
}

}  // namespace longcat_ops
