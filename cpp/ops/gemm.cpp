#include "check/error.h"
#include "check/expert_weights.h"
#include "check/gemm_checks.h"
#include "common/constants.h"
#include "common/numeric.h"
#include "cost/moe_gemm_explain.h"
#include "ops/table.h"

namespace longcat_ops {
namespace {

int64_t blocks(int64_t size) { return ceil_div(size, kQuantBlock); }

// a e4m3 [..., K] and sa f32 [..., ceil(K / 128)]; the leading sizes are free.
void check_activation(const char* op, Fp8Pair lhs, int rank, const char* layout) {
  const auto& [a, sa] = lhs;
  const Named like{"a", &a};
  check_lead(op, like, rank, layout);
  check_dtype(op, "a", a, DType::kFloat8E4M3);
  const int64_t width = a.sizes[rank - 1];
  check_multiple(op, "a", a, rank - 1, layout, "K");
  check_unit_inner_stride(op, "a", a);
  if (rank == 2) return check_operand(op, {"sa", &sa}, DType::kFloat32, {a.sizes[0], blocks(width)}, like);
  check_operand(op, {"sa", &sa}, DType::kFloat32, {a.sizes[0], a.sizes[1], blocks(width)}, like);
}

// What the three layouts share: a [.., K] against b [G, N, K].
void check_grouped_operands(const char* op, Fp8Pair lhs, Fp8Pair rhs, int rank, const char* layout) {
  check_activation(op, lhs, rank, layout);
  check_stacked_weight(op, "b", "sb", rhs, {"a", &lhs.values});
  check_inner_size(op, "b", rhs.values, lhs.values);
}

void check_fp8_gemm_nt(const Arguments& a) {
  static constexpr const char* kOp = "fp8_gemm_nt";
  const Fp8Pair lhs = a.pair("a", "sa"), rhs = a.pair("b", "sb");
  const TensorDesc &x = lhs.values, &w = rhs.values;
  check_activation(kOp, lhs, 2, "[M, K]");
  check_lead(kOp, {"b", &w}, 2, "[N, K]", w.dim == 3 ? "m_grouped_fp8_gemm_nt_offset takes a stack of weights" : "");
  check_inner_size(kOp, "b", w, x);
  const int64_t n = w.sizes[0], k = w.sizes[1];
  check_same_device(kOp, {"b", &w}, {"a", &x});
  check_dtype(kOp, "b", w, DType::kFloat8E4M3);
  check_multiple(kOp, "b", w, 0, "[N, K]", "N");
  check_unit_inner_stride(kOp, "b", w);
  check_operand(kOp, {"sb", &rhs.scales}, DType::kFloat32, {blocks(n), blocks(k)}, {"b", &w});
  check_dense_rest(kOp, a);
}

void check_m_grouped_fp8_gemm_nt_offset(const Arguments& a) {
  static constexpr const char* kOp = "m_grouped_fp8_gemm_nt_offset";
  check_grouped_operands(kOp, a.pair("a", "sa"), a.pair("b", "sb"), 2, "[M, K]");
  check_offset_rest(kOp, a);
}

void check_m_grouped_fp8_gemm_nt_masked(const Arguments& a) {
  static constexpr const char* kOp = "m_grouped_fp8_gemm_nt_masked";
  check_grouped_operands(kOp, a.pair("a", "sa"), a.pair("b", "sb"), 3, "[G, M, K]");
  check_masked_rest(kOp, a);
}

void check_m_grouped_fp8_gemm_nt_contiguous(const Arguments& a) {
  static constexpr const char* kOp = "m_grouped_fp8_gemm_nt_contiguous";
  check_grouped_operands(kOp, a.pair("a", "sa"), a.pair("b", "sb"), 2, "[M, K]");
  check_contiguous_rest(kOp, a);
}

void check_interleave_gate_up(const Arguments& a) {
  static constexpr const char* kOp = "interleave_gate_up";
  const TensorDesc &w = a.tensor("w"), *s = a.optional_tensor("s");
  const TensorDesc *w_out = a.optional_tensor("w_out"), *s_out = a.optional_tensor("s_out");
  const Named like{"w", &w};
  check_device(kOp, "w", w);
  const bool is_fp8 = w.dtype == DType::kFloat8E4M3;
  LC_CHECK(is_fp8 || w.dtype == DType::kBFloat16 || w.dtype == DType::kFloat32, kOp, "w", dtype_name(w.dtype),
           "torch.float8_e4m3fn, torch.bfloat16 or torch.float32", describe("w", w), "");
  check_scales_given(kOp, like, {"s", s});
  is_fp8 ? check_gate_up(kOp, "w", "s", {w, *s}, {}) : check_gate_up_values(kOp, "w", w, {});
  if (w_out) {
    check_operand(kOp, {"w_out", w_out}, w.dtype, {w.sizes[0], w.sizes[1], w.sizes[2]}, like);
    check_contiguous(kOp, "w_out", *w_out);
  }
  if (w_out || s_out)
    LC_CHECK(!s == !s_out, kOp, "s_out", s_out ? "a tensor" : "None",
             s ? "a tensor, as there is s" : "None, as there is no s", describe("w", w), "");
  if (s_out) {
    check_operand(kOp, {"s_out", s_out}, s->dtype, {s->sizes[0], s->sizes[1], s->sizes[2]}, like);
    check_contiguous(kOp, "s_out", *s_out);
  }
  check_no_alias(kOp, a);
}

void check_m_grouped_fp8_swiglu_gemm_nt_offset(const Arguments& a) {
  static constexpr const char* kOp = "m_grouped_fp8_swiglu_gemm_nt_offset";
  const Fp8Pair lhs = a.pair("a", "sa"), gate_up = a.pair("gate_up", "s_gate_up");
  check_activation(kOp, lhs, 2, "[M, K]");
  check_gate_up(kOp, "gate_up", "s_gate_up", gate_up, {"a", &lhs.values});
  check_inner_size(kOp, "gate_up", gate_up.values, lhs.values);
  check_swiglu_rest(kOp, a, DType::kBFloat16);
}

}  // namespace

std::vector<OpRow> gemm_ops() {
  return {
      // a e4m3 [M, K], sa f32 [M, ceil(K / 128)], b e4m3 [N, K], sb f32 [ceil(N / 128), ceil(K / 128)], out [M, N]
      {"fp8_gemm_nt(Tensor a, Tensor sa, Tensor b, Tensor sb, int split_k, Tensor(a!) out) -> ()",
       check_fp8_gemm_nt,
       {.flops = row_flops, .product = dense_problem}},
      // b e4m3 [G, N, K], sb f32 [G, ceil(N / 128), ceil(K / 128)]; rows offsets[g] .. offsets[g + 1] of a go to group
      // g
      {"m_grouped_fp8_gemm_nt_offset(Tensor a, Tensor sa, Tensor b, Tensor sb, Tensor offsets, int? max_m_hint, "
       "bool counts_ready, int split_k, Tensor(a!) out) -> ()",
       check_m_grouped_fp8_gemm_nt_offset,
       {.flops = row_flops, .assumes = kEveryExpert, .product = offset_problem}},
      // a e4m3 [G, M, K], out [G, M, N]; the first masked_m[g] rows of group g
      {"m_grouped_fp8_gemm_nt_masked(Tensor a, Tensor sa, Tensor b, Tensor sb, Tensor masked_m, int expected_m, "
       "Tensor(a!) out) -> ()",
       check_m_grouped_fp8_gemm_nt_masked,
       {.flops = stacked_flops, .assumes = kEveryExpert, .product = masked_problem}},
      // m_indices i32 [M]: group of each row, or -1
      {"m_grouped_fp8_gemm_nt_contiguous(Tensor a, Tensor sa, Tensor b, Tensor sb, Tensor m_indices, "
       "Tensor(a!) out) -> ()",
       check_m_grouped_fp8_gemm_nt_contiguous,
       {.flops = row_flops, .assumes = kEveryExpert, .product = contiguous_problem}},
      // w [G, 2I, K]; with e4m3 alone s f32 [G, 2 * ceil(I / 128), ceil(K / 128)]
      {"interleave_gate_up(Tensor w, Tensor? s, Tensor(a!) w_out, Tensor(b!)? s_out) -> ()", check_interleave_gate_up},
      // gate_up interleaved; h e4m3 [M, I], sh f32 [M, ceil(I / 128)]; without sh h is bf16
      {"m_grouped_fp8_swiglu_gemm_nt_offset(Tensor a, Tensor sa, Tensor gate_up, Tensor s_gate_up, Tensor offsets, "
       "int? max_m_hint, bool counts_ready, Tensor(a!) h, Tensor(b!)? sh) -> ()",
       check_m_grouped_fp8_swiglu_gemm_nt_offset,
       {.flops = gate_up_flops, .assumes = kEveryExpert, .product = swiglu_problem}},
  };
}

}  // namespace longcat_ops
