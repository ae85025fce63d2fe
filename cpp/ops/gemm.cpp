#include "check/gemm_check.h"

#include "cost/moe_gemm_explain.h"
#include "ops/table.h"

namespace longcat_ops {
namespace {

constexpr const char* kEveryExpert = "every row is used and every expert has one";

double row_flops(const Arguments& a) { return product_flops(a.tensor("a").sizes[0], a.tensor("b")); }
double stacked_flops(const Arguments& a) {
  const TensorDesc& x = a.tensor("a");
  return product_flops(x.sizes[0] * x.sizes[1], a.tensor("b"));
}
double gate_up_flops(const Arguments& a) { return product_flops(a.tensor("a").sizes[0], a.tensor("gate_up")); }

MoeGemmProblem dense_problem(const Arguments& a) {
  MoeGemmProblem problem = moe_gemm_problem(a.tensor("a"), a.tensor("b"));
  problem.split_k = a.integer("split_k");
  return problem;
}
MoeGemmProblem offset_problem(const Arguments& a) {
  MoeGemmProblem problem = dense_problem(a);
  problem.max_rows = a.optional_integer("max_m_hint").value_or(problem.max_rows);
  return problem;
}
MoeGemmProblem masked_problem(const Arguments& a) {
  MoeGemmProblem problem = moe_gemm_problem(a.tensor("a"), a.tensor("b"));
  problem.mean_rows = a.integer("expected_m");
  return problem;
}
MoeGemmProblem contiguous_problem(const Arguments& a) { return moe_gemm_problem(a.tensor("a"), a.tensor("b")); }
MoeGemmProblem swiglu_problem(const Arguments& a) {
  MoeGemmProblem problem = moe_gemm_problem(a.tensor("a"), a.tensor("gate_up"));
  problem.swiglu = true;
  problem.max_rows = a.optional_integer("max_m_hint").value_or(problem.max_rows);
  return problem;
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
      // w e4m3 [G, 2I, K], s f32 [G, 2 * ceil(I / 128), ceil(K / 128)]
      {"interleave_gate_up(Tensor w, Tensor s, Tensor(a!) w_out, Tensor(b!) s_out) -> ()", check_interleave_gate_up},
      // gate_up interleaved; h e4m3 [M, I], sh f32 [M, ceil(I / 128)]
      {"m_grouped_fp8_swiglu_gemm_nt_offset(Tensor a, Tensor sa, Tensor gate_up, Tensor s_gate_up, Tensor offsets, "
       "int? max_m_hint, bool counts_ready, Tensor(a!) h, Tensor(b!) sh) -> ()",
       check_m_grouped_fp8_swiglu_gemm_nt_offset,
       {.flops = gate_up_flops, .assumes = kEveryExpert, .product = swiglu_problem}},
  };
}

}  // namespace longcat_ops
