#include "config/norm_check.h"

#include <cmath>

#include "base/check.h"

namespace longcat_ops {
namespace {

constexpr const char* kOp = "rms_norm";

std::string describe(const char* name, const TensorDesc& tensor) {
  return text(name, ": ", desc_text(tensor), " on ", device_text(tensor));
}

void check_beside(const char* name, const TensorDesc& tensor, const TensorDesc& x) {
  LC_CHECK(tensor.device == x.device && tensor.device_index == x.device_index, kOp, name, "on " + device_text(tensor),
           "on " + device_text(x) + ", the device of `x`", describe("x", x), "");
}

void check_unit_inner_stride(const char* name, const TensorDesc& tensor) {
  LC_CHECK(tensor.strides[1] == 1 || tensor.sizes[0] == 0 || tensor.sizes[1] <= 1, kOp, name,
           "of strides " + strides_text(tensor), "a last stride of 1", describe(name, tensor),
           text(name, ".contiguous()"));
}

}  // namespace

void check_rms_norm(const TensorDesc& x, const TensorDesc& weight, double eps, const TensorDesc* y) {
  LC_CHECK(x.device != DeviceKind::kOther, kOp, "x", "on another device type", "a tensor on cpu or cuda", desc_text(x),
           "move it with .cpu() or .cuda()");
  LC_CHECK(x.dim == 2, kOp, "x", text(x.dim, "-D ", shape_text(x)), "2-D [T, H]", "",
           "reshape it to two dimensions, for example .reshape(-1, width)");
  LC_CHECK(x.dtype == DType::kBFloat16 || x.dtype == DType::kFloat16 || x.dtype == DType::kFloat32, kOp, "x",
           dtype_name(x.dtype), "torch.bfloat16, torch.float16 or torch.float32", describe("x", x), "x.float()");
  LC_CHECK(x.sizes[1] > 0, kOp, "x", "of width 0", "at least one column", describe("x", x), "");
  check_unit_inner_stride("x", x);
  check_beside("weight", weight, x);
  LC_CHECK(weight.dtype == DType::kFloat32, kOp, "weight", dtype_name(weight.dtype), "torch.float32",
           describe("weight", weight), "weight.float()");
  LC_CHECK(weight.dim == 1 && weight.sizes[0] == x.sizes[1], kOp, "weight", "of shape " + shape_text(weight),
           text("[", x.sizes[1], "]"), describe("x", x), "");
  LC_CHECK(weight.strides[0] == 1 || weight.sizes[0] == 1, kOp, "weight", "of strides " + strides_text(weight),
           "contiguous", describe("weight", weight), "weight.contiguous()");
  LC_CHECK(eps >= 0 && std::isfinite(eps), kOp, "eps", text(eps), "0 or a small positive number", "", "");
  if (!y) return;
  check_beside("y", *y, x);
  LC_CHECK(y->dtype == x.dtype, kOp, "y", dtype_name(y->dtype), dtype_name(x.dtype), describe("x", x), "");
  LC_CHECK(y->dim == 2 && y->sizes[0] == x.sizes[0] && y->sizes[1] == x.sizes[1], kOp, "y",
           "of shape " + shape_text(*y), shape_text(x), describe("x", x), "");
  check_unit_inner_stride("y", *y);
  LC_CHECK(y->sizes[0] <= 1 || y->strides[0] >= y->sizes[1], kOp, "y", "of strides " + strides_text(*y),
           text("a row stride of at least ", y->sizes[1]), describe("y", *y),
           "pass an output whose rows do not overlap");
}

}  // namespace longcat_ops
