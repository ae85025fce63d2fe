#include "check/error.h"
#include "check/tensor_checks.h"
#include "common/numeric.h"
#include "ops/table.h"
#include "router/config.h"

namespace longcat_ops {
namespace {

constexpr int64_t kTerms = router::kTerms;

void check_router_gemm(const Arguments& a) {
  static constexpr const char* kOp = "router_gemm";
  const TensorDesc &x = a.tensor("x"), &w = a.tensor("w");
  const TensorDesc *split = a.optional_tensor("split"), *out = a.optional_tensor("out");
  const Named like{"x", &x};
  check_lead(kOp, like, 2, "[T, H]");
  LC_CHECK(x.dtype == DType::kBFloat16 || x.dtype == DType::kFloat32, kOp, "x", dtype_name(x.dtype),
           "torch.bfloat16 or torch.float32", describe("x", x), "x.bfloat16()");
  check_multiple(kOp, "x", x, 1, "[T, H]", "H");
  check_unit_inner_stride(kOp, "x", x);
  check_rank(kOp, "w", w, 2, "[E, H]");
  const int64_t experts = w.sizes[0], columns = x.sizes[1];
  LC_CHECK(experts >= 1 && experts <= kMaxExperts, kOp, "w", "of shape " + shape_text(w),
           text("[E, H] with E in 1 .. ", kMaxExperts), describe("x", x), "");
  check_operand(kOp, {"w", &w}, DType::kFloat32, {experts, columns}, like);
  check_unit_inner_stride(kOp, "w", w);
  LC_CHECK(split || x.device != DeviceKind::kCuda, kOp, "split", "None", "split_bf16x3(w): on CUDA the terms are read",
           describe("x", x), "split=longcat_ops.split_bf16x3(w)");
  if (split) {
    check_operand(kOp, {"split", split}, DType::kBFloat16, {kTerms, experts, columns}, like);
    check_contiguous(kOp, "split", *split);
    LC_CHECK(split->address % 16 == 0 || x.device != DeviceKind::kCuda, kOp, "split", "at an address off 16 bytes",
             "a multiple of 16", describe("split", *split), "split.clone()");
  }
  if (out) check_output_rows(kOp, {"out", out}, DType::kFloat32, {x.sizes[0], experts}, like);
  check_no_alias(kOp, a);
}

// x, and the terms in place of w where they are given.
int64_t router_bytes(const Arguments& a) {
  const TensorDesc& x = a.tensor("x");
  const TensorDesc *split = a.optional_tensor("split"), &weight = split ? *split : a.tensor("w");
  return num_elements(x) * element_size(x.dtype) + num_elements(weight) * element_size(weight.dtype);
}

double router_flops(const Arguments& a) { return product_flops(a.tensor("x").sizes[0], a.tensor("w")); }

std::vector<KernelShape> router_launches(const Arguments& a) {
  const TensorDesc &x = a.tensor("x"), &w = a.tensor("w");
  const bool mapped = x.address % 16 == 0 && (x.sizes[0] <= 1 || x.strides[0] % 8 == 0);
  const router::Tokens how = x.dtype == DType::kFloat32 ? router::Tokens::kSplit
                             : mapped                   ? router::Tokens::kMapped
                                                        : router::Tokens::kCopied;
  const RouterGemmConfig config = choose_router_gemm_config(x.sizes[0], w.sizes[0], x.sizes[1], how);
  if (config.blocks() == 0) return {};
  return {{"router_gemm", config.blocks(), router::threads(how), static_cast<int>(config.smem.bytes)}};
}

}  // namespace

std::vector<OpRow> router_ops() {
  return {
      // x bf16 or f32 [T, H], w f32 [E, H], split bf16 [3, E, H], out f32 [T, E]
      {"router_gemm(Tensor x, Tensor w, Tensor? split, Tensor(a!) out) -> ()",
       check_router_gemm,
       {.flops = router_flops, .bytes_read = router_bytes, .launches = router_launches}},
  };
}

}  // namespace longcat_ops
