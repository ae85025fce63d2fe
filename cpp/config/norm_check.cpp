#include "config/norm_check.h"

#include <cmath>

#include "base/check.h"
#include "config/tensor_checks.h"

namespace longcat_ops {

void check_rms_norm(const TensorDesc& x, const TensorDesc& weight, double eps, const TensorDesc* y) {
  static constexpr const char* kOp = "rms_norm";
  check_device(kOp, "x", x);
  check_rank_2(kOp, "x", x, "[T, H]");
  LC_CHECK(is_floating(x.dtype), kOp, "x", dtype_name(x.dtype), "torch.bfloat16, torch.float16 or torch.float32",
           describe("x", x), "x.float()");
  LC_CHECK(x.sizes[1] > 0, kOp, "x", "of width 0", "at least one column", describe("x", x), "");
  check_unit_inner_stride(kOp, "x", x);
  check_same_device(kOp, "weight", weight, "x", x);
  check_dtype(kOp, "weight", weight, DType::kFloat32);
  LC_CHECK(weight.dim == 1 && weight.sizes[0] == x.sizes[1], kOp, "weight", "of shape " + shape_text(weight),
           text("[", x.sizes[1], "]"), describe("x", x), "");
  LC_CHECK(weight.strides[0] == 1 || weight.sizes[0] == 1, kOp, "weight", "of strides " + strides_text(weight),
           "contiguous", describe("weight", weight), "weight.contiguous()");
  LC_CHECK(eps >= 0 && std::isfinite(eps), kOp, "eps", text(eps), "0 or a small positive number", "", "");
  if (!y) return;
  check_same_device(kOp, "y", *y, "x", x);
  check_dtype(kOp, "y", *y, x.dtype);
  check_shape(kOp, "y", *y, x.sizes[0], x.sizes[1], "x", x);
  check_unit_inner_stride(kOp, "y", *y);
  check_rows_do_not_overlap(kOp, "y", *y);
}

}  // namespace longcat_ops
