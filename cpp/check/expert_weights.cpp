#include "check/expert_weights.h"

#include "check/error.h"
#include "common/constants.h"
#include "common/numeric.h"

namespace longcat_ops {
namespace {

int64_t blocks(int64_t size) { return ceil_div(size, kQuantBlock); }

}  // namespace

void check_stacked_weight(const char* op, const char* name, const char* scales_name, Fp8Pair weight, Named like) {
  const auto& [w, s] = weight;
  check_lead(op, {name, &w}, 3, "[G, N, K]");
  if (like.tensor) check_same_device(op, {name, &w}, like);
  check_dtype(op, name, w, DType::kFloat8E4M3);
  check_multiple(op, name, w, 1, "[G, N, K]", "N");
  check_multiple(op, name, w, 2, "[G, N, K]", "K");
  check_contiguous(op, name, w);
  check_operand(op, {scales_name, &s}, DType::kFloat32, {w.sizes[0], blocks(w.sizes[1]), blocks(w.sizes[2])},
                {name, &w});
}

void check_gate_up_values(const char* op, const char* name, const TensorDesc& w, Named like) {
  check_lead(op, {name, &w}, 3, "[G, 2I, K]");
  if (like.tensor) check_same_device(op, {name, &w}, like);
  check_multiple(op, name, w, 1, "[G, 2I, K]", "I", 2 * kWidthMultiple);
  check_multiple(op, name, w, 2, "[G, 2I, K]", "K");
  check_contiguous(op, name, w);
}

void check_gate_up(const char* op, const char* name, const char* scales_name, Fp8Pair gate_up, Named like) {
  const auto& [w, s] = gate_up;
  check_device(op, name, w);
  check_dtype(op, name, w, DType::kFloat8E4M3);
  check_gate_up_values(op, name, w, like);
  check_operand(op, {scales_name, &s}, DType::kFloat32, {w.sizes[0], 2 * blocks(w.sizes[1] / 2), blocks(w.sizes[2])},
                {name, &w});
}

void check_scales_given(const char* op, Named weight, Named scales, const char* fix) {
  LC_CHECK((weight.tensor->dtype == DType::kFloat8E4M3) == (scales.tensor != nullptr), op, scales.name,
           scales.tensor ? "a tensor" : "None",
           scales.tensor ? "None for a weight that is not e4m3" : "the scales of an e4m3 weight",
           describe(weight.name, *weight.tensor), fix);
}

void check_expert_weight(const char* op, const char* name, const char* scales_name, const TensorDesc& w,
                         const TensorDesc* scales, bool is_gate_up, const TensorDesc& x) {
  const Named like{"x", &x};
  check_device(op, name, w);
  LC_CHECK(w.dtype != DType::kFloat16, op, name, dtype_name(w.dtype),
           "torch.float8_e4m3fn, torch.bfloat16 or torch.float32: no LongCat model holds float16", describe(name, w),
           text(name, ".bfloat16()"));
  LC_CHECK(w.dtype != DType::kFloat32 || w.device != DeviceKind::kCuda, op, name, dtype_name(w.dtype),
           "torch.float8_e4m3fn or torch.bfloat16: on CUDA the tensor cores take no float32", describe(name, w),
           text(name, ".bfloat16()"));
  LC_CHECK(is_floating(w.dtype) || w.dtype == DType::kFloat8E4M3, op, name, dtype_name(w.dtype),
           "torch.float8_e4m3fn, torch.bfloat16 or torch.float32", describe(name, w), "");
  check_scales_given(op, {name, &w}, {scales_name, scales},
                     "pass the pair (weight, scales) of an FP8 weight, the tensor of any other");
  if (scales && is_gate_up) return check_gate_up(op, name, scales_name, {w, *scales}, like);
  if (scales) return check_stacked_weight(op, name, scales_name, {w, *scales}, like);
  if (is_gate_up) return check_gate_up_values(op, name, w, like);
  check_lead(op, {name, &w}, 3, "[G, H, I]");
  check_same_device(op, {name, &w}, like);
  check_multiple(op, name, w, 1, "[G, H, I]", "H");
  check_multiple(op, name, w, 2, "[G, H, I]", "I");
  check_contiguous(op, name, w);
}

}  // namespace longcat_ops
