#include <cmath>

#include "check/error.h"
#include "check/tensor_checks.h"
#include "common/constants.h"
#include "common/numeric.h"
#include "ops/table.h"
#include "rows/config.h"

namespace longcat_ops {
namespace {

void check_norm_inputs(const char* op, const TensorDesc& x, const TensorDesc& weight, double eps) {
  check_lead(op, {"x", &x}, 2, "[T, H]");
  check_floating(op, "x", x);
  LC_CHECK(x.sizes[1] > 0, op, "x", "of shape " + shape_text(x), "[T, H] with H at least 1", describe("x", x), "");
  check_unit_inner_stride(op, "x", x);
  check_operand(op, {"weight", &weight}, DType::kFloat32, {x.sizes[1]}, {"x", &x});
  check_contiguous(op, "weight", weight);
  LC_CHECK(eps >= 0 && std::isfinite(eps), op, "eps", text(eps), "0 or a small positive number", "", "");
}

// What is added to x, and where the sum goes. is_allocated: the outputs are there.
void check_residual(const char* op, const Arguments& a, bool is_allocated) {
  const TensorDesc &x = a.tensor("x"), *residual = a.optional_tensor("residual");
  const TensorDesc* residual_out = a.optional_tensor("residual_out");
  const Named like{"x", &x};
  if (residual) {
    check_operand(op, {"residual", residual}, x.dtype, {x.sizes[0], x.sizes[1]}, like);
    check_unit_inner_stride(op, "residual", *residual);
  }
  LC_CHECK(residual || !residual_out, op, "residual_out", "a tensor", "None, as there is no residual", describe("x", x),
           "pass residual too");
  LC_CHECK(!is_allocated || !residual || residual_out, op, "residual_out", "None", "a tensor, as there is a residual",
           describe("x", x), "");
  if (residual_out) check_output_rows(op, {"residual_out", residual_out}, x.dtype, {x.sizes[0], x.sizes[1]}, like);
}

void check_rms_norm(const Arguments& a) {
  static constexpr const char* kOp = "rms_norm";
  const TensorDesc& x = a.tensor("x");
  const TensorDesc* y = a.optional_tensor("y");
  check_norm_inputs(kOp, x, a.tensor("weight"), a.number("eps"));
  check_residual(kOp, a, y != nullptr);
  if (y) check_output_rows(kOp, {"y", y}, x.dtype, {x.sizes[0], x.sizes[1]}, {"x", &x});
  check_no_alias(kOp, a);
}

void check_rms_norm_quant_fp8(const Arguments& a) {
  static constexpr const char* kOp = "rms_norm_quant_fp8";
  const TensorDesc& x = a.tensor("x");
  const TensorDesc *q = a.optional_tensor("q"), *s = a.optional_tensor("s"), *y = a.optional_tensor("y");
  check_norm_inputs(kOp, x, a.tensor("weight"), a.number("eps"));
  const int64_t rows = x.sizes[0], width = x.sizes[1];
  const Named like{"x", &x};
  check_multiple(kOp, "x", x, 1, "[T, H]", "H");
  check_residual(kOp, a, y != nullptr);
  if (q) check_output_rows(kOp, {"q", q}, DType::kFloat8E4M3, {rows, width}, like);
  if (s) {
    check_operand(kOp, {"s", s}, DType::kFloat32, {rows, ceil_div(width, kQuantBlock)}, like);
    check_elements_apart(kOp, "s", *s);
  }
  if (y) check_output_rows(kOp, {"y", y}, x.dtype, {rows, width}, like);
  check_no_alias(kOp, a);
}

std::vector<KernelShape> norm_launches(const Arguments& a) {
  const TensorDesc& x = a.tensor("x");
  if (x.sizes[0] == 0) return {};
  return {{"rms_norm", x.sizes[0], choose_norm_threads(x.sizes[1]), kRmsNormSmemBytes}};
}

}  // namespace

std::vector<OpRow> norm_ops() {
  return {
      // x [T, H], weight f32 [H], y [T, H] of x's dtype; of x or of x + residual, which residual_out keeps
      {"rms_norm(Tensor x, Tensor weight, float eps, Tensor? residual, Tensor(a!) y, Tensor(b!)? residual_out) -> ()",
       check_rms_norm,
       {.launches = norm_launches}},
      // as rms_norm; q e4m3 [T, H], s f32 [T, ceil(H / 128)]
      {"rms_norm_quant_fp8(Tensor x, Tensor weight, float eps, Tensor? residual, Tensor(a!) q, Tensor(b!) s, "
       "Tensor(c!) y, Tensor(d!)? residual_out) -> ()",
       check_rms_norm_quant_fp8},
  };
}

}  // namespace longcat_ops
