#include "check/error.h"
#include "check/scales.h"
#include "check/tensor_checks.h"
#include "common/constants.h"
#include "common/numeric.h"
#include "ops/table.h"

namespace longcat_ops {
namespace {

void check_quant_input(const char* op, Named input, const char* layout, const char* size_name,
                       int64_t multiple = kWidthMultiple) {
  check_lead(op, input, 2, layout);
  check_floating(op, input.name, *input.tensor);
  check_multiple(op, input.name, *input.tensor, 1, layout, size_name, multiple);
  check_unit_inner_stride(op, input.name, *input.tensor);
}

void check_group_size(const char* op, int64_t group_size) {
  LC_CHECK(group_size > 0 && group_size % kWidthMultiple == 0, op, "group_size", std::to_string(group_size),
           text("a positive multiple of ", kWidthMultiple), "", "use 128, the group of the published checkpoints");
}

// q [rows, columns] with s [scale_rows, scale_columns], both optional.
void check_quantised(const char* op, const TensorDesc* q, const TensorDesc* s, int64_t rows, int64_t columns,
                     int64_t scale_rows, int64_t scale_columns, Named input) {
  if (q) check_output_rows(op, {"q", q}, DType::kFloat8E4M3, {rows, columns}, input);
  if (s) {
    check_operand(op, {"s", s}, DType::kFloat32, {scale_rows, scale_columns}, input);
    check_elements_apart(op, "s", *s);
  }
}

void check_per_token_group_quant_fp8(const Arguments& a) {
  static constexpr const char* kOp = "per_token_group_quant_fp8";
  const TensorDesc& x = a.tensor("x");
  const TensorDesc *q = a.optional_tensor("q"), *s = a.optional_tensor("s");
  const int64_t group_size = a.integer("group_size");
  check_quant_input(kOp, {"x", &x}, "[T, H]", "H");
  check_group_size(kOp, group_size);
  const int64_t rows = x.sizes[0], width = x.sizes[1];
  check_quantised(kOp, q, s, rows, width, rows, ceil_div(width, group_size), {"x", &x});
  check_no_alias(kOp, a);
}

void check_per_block_quant_fp8(const Arguments& a) {
  static constexpr const char* kOp = "per_block_quant_fp8";
  const TensorDesc& w = a.tensor("w");
  const TensorDesc *q = a.optional_tensor("q"), *s = a.optional_tensor("s");
  check_quant_input(kOp, {"w", &w}, "[N, K]", "K");
  const int64_t rows = w.sizes[0], width = w.sizes[1];
  check_quantised(kOp, q, s, rows, width, ceil_div(rows, kQuantBlock), ceil_div(width, kQuantBlock), {"w", &w});
  check_no_alias(kOp, a);
}

void check_silu_and_mul_quant_fp8(const Arguments& a) {
  static constexpr const char* kOp = "silu_and_mul_quant_fp8";
  const TensorDesc& gate_up = a.tensor("gate_up");
  const TensorDesc *q = a.optional_tensor("q"), *s = a.optional_tensor("s");
  check_quant_input(kOp, {"gate_up", &gate_up}, "[T, 2I]", "I", 2 * kWidthMultiple);
  const int64_t rows = gate_up.sizes[0], width = gate_up.sizes[1] / 2;
  check_quantised(kOp, q, s, rows, width, rows, ceil_div(width, kQuantBlock), {"gate_up", &gate_up});
  check_no_alias(kOp, a);
}

void check_dequant_fp8(const Arguments& a) {
  static constexpr const char* kOp = "dequant_fp8";
  const TensorDesc &q = a.tensor("q"), &s = a.tensor("s");
  const TensorDesc* out = a.optional_tensor("out");
  const int64_t group_size = a.integer("group_size");
  const Named like{"q", &q};
  check_lead(kOp, like, 2, "[N, K]");
  check_dtype(kOp, "q", q, DType::kFloat8E4M3);
  check_unit_inner_stride(kOp, "q", q);
  check_group_size(kOp, group_size);
  check_rank(kOp, "s", s, 2, "scales");
  const int64_t rows = q.sizes[0], columns = q.sizes[1];
  const bool per_row = scales_are_per_row(q, s, group_size);
  const bool per_block = s.sizes[0] == ceil_div(rows, kQuantBlock) && s.sizes[1] == ceil_div(columns, kQuantBlock);
  LC_CHECK(
      per_row || per_block, kOp, "s", "of shape " + shape_text(s),
      text("[", rows, ", ", ceil_div(columns, group_size), "] (one scale per row and ", group_size, " columns) or [",
           ceil_div(rows, kQuantBlock), ", ", ceil_div(columns, kQuantBlock), "] (one per 128 x 128 block)"),
      describe("q", q), "pass the scales returned with q");
  check_operand(kOp, {"s", &s}, DType::kFloat32, {s.sizes[0], s.sizes[1]}, like);
  if (out) {
    check_device(kOp, "out", *out);
    LC_CHECK(is_floating(out->dtype), kOp, "dtype", dtype_name(out->dtype),
             "torch.bfloat16, torch.float16 or torch.float32", describe("q", q), "");
    check_output_rows(kOp, {"out", out}, out->dtype, {rows, columns}, like);
  }
  check_no_alias(kOp, a);
}

}  // namespace

std::vector<OpRow> quant_ops() {
  return {
      // x [T, H], q e4m3 [T, H], s f32 [T, ceil(H / group_size)]
      {"per_token_group_quant_fp8(Tensor x, int group_size, Tensor(a!) q, Tensor(b!) s) -> ()",
       check_per_token_group_quant_fp8},
      // w [N, K], q e4m3 [N, K], s f32 [ceil(N / 128), ceil(K / 128)]
      {"per_block_quant_fp8(Tensor w, Tensor(a!) q, Tensor(b!) s) -> ()", check_per_block_quant_fp8},
      // gate_up [T, 2I], q e4m3 [T, I], s f32 [T, ceil(I / 128)]
      {"silu_and_mul_quant_fp8(Tensor gate_up, Tensor(a!) q, Tensor(b!) s) -> ()", check_silu_and_mul_quant_fp8},
      // q e4m3 [N, K], s f32 [N, ceil(K / group_size)] or [ceil(N / 128), ceil(K / 128)], out [N, K]
      {"dequant_fp8(Tensor q, Tensor s, int group_size, Tensor(a!) out) -> ()", check_dequant_fp8},
  };
}

}  // namespace longcat_ops
