// Every schema of torch.ops.longcat_ops, through LibTorch's stable ABI: one binary for every torch >= 2.11.
// Ops are out-variants that return nothing; (a!) marks exactly what is written.
#include <torch/csrc/stable/library.h>

#include "bindings/ops.h"

STABLE_TORCH_LIBRARY(longcat_ops, m) {
  // x [T, H], q e4m3 [T, H], s f32 [T, ceil(H / group_size)]
  m.def("per_token_group_quant_fp8(Tensor x, int group_size, Tensor(a!) q, Tensor(b!) s) -> ()");
  // w [N, K], q e4m3 [N, K], s f32 [ceil(N / 128), ceil(K / 128)]
  m.def("per_block_quant_fp8(Tensor w, Tensor(a!) q, Tensor(b!) s) -> ()");
  // gate_up [T, 2I], q e4m3 [T, I], s f32 [T, ceil(I / 128)]
  m.def("silu_and_mul_quant_fp8(Tensor gate_up, Tensor(a!) q, Tensor(b!) s) -> ()");
  // q e4m3 [N, K], s f32 [N, ceil(K / group_size)] or [ceil(N / 128), ceil(K / 128)], out [N, K]
  m.def("dequant_fp8(Tensor q, Tensor s, int group_size, Tensor(a!) out) -> ()");
  // x [T, H], weight f32 [H], y [T, H] of x's dtype
  m.def("rms_norm(Tensor x, Tensor weight, float eps, Tensor(a!) y) -> ()");
  // as rms_norm, on x + residual if there is one, which residual_out keeps; q e4m3 [T, H], s f32 [T, ceil(H / 128)]
  m.def(
      "rms_norm_quant_fp8(Tensor x, Tensor weight, float eps, Tensor? residual, Tensor(a!) q, Tensor(b!) s, "
      "Tensor(c!) y, Tensor(d!)? residual_out) -> ()");

  // a e4m3 [M, K], sa f32 [M, ceil(K / 128)], b e4m3 [N, K], sb f32 [ceil(N / 128), ceil(K / 128)], out [M, N]
  m.def("fp8_gemm_nt(Tensor a, Tensor sa, Tensor b, Tensor sb, int split_k, Tensor(a!) out) -> ()");
  // b e4m3 [G, N, K], sb f32 [G, ceil(N / 128), ceil(K / 128)]; rows offsets[g] .. offsets[g + 1] of a go to group g
  m.def(
      "m_grouped_fp8_gemm_nt_offset(Tensor a, Tensor sa, Tensor b, Tensor sb, Tensor offsets, int? max_m_hint, "
      "bool counts_ready, int split_k, Tensor(a!) out) -> ()");
  // a e4m3 [G, M, K], out [G, M, N]; the first masked_m[g] rows of group g
  m.def(
      "m_grouped_fp8_gemm_nt_masked(Tensor a, Tensor sa, Tensor b, Tensor sb, Tensor masked_m, int expected_m, "
      "Tensor(a!) out) -> ()");
  // m_indices i32 [M]: group of each row, or -1
  m.def(
      "m_grouped_fp8_gemm_nt_contiguous(Tensor a, Tensor sa, Tensor b, Tensor sb, Tensor m_indices, "
      "Tensor(a!) out) -> ()");
  // w e4m3 [G, 2I, K], s f32 [G, 2 * ceil(I / 128), ceil(K / 128)]
  m.def("interleave_gate_up(Tensor w, Tensor s, Tensor(a!) w_out, Tensor(b!) s_out) -> ()");
  // gate_up interleaved; h e4m3 [M, I], sh f32 [M, ceil(I / 128)]
  m.def(
      "m_grouped_fp8_swiglu_gemm_nt_offset(Tensor a, Tensor sa, Tensor gate_up, Tensor s_gate_up, Tensor offsets, "
      "int? max_m_hint, bool counts_ready, Tensor(a!) h, Tensor(b!) sh) -> ()");

  // logits [T, E], bias f32 [E], num_valid i32 [1], ids i32 and weights f32 [T, K], zero_weight f32 and num_real u8
  // [T], counts i32 [E], errors i32 [1]
  m.def(
      "moe_route(Tensor logits, Tensor bias, Tensor? num_valid, int top_k, int num_experts, int num_zero_experts, "
      "float scale, Tensor(a!) ids, Tensor(b!) weights, Tensor(c!) zero_weight, Tensor(d!) num_real, "
      "Tensor(e!) counts, Tensor(f!) errors) -> ()");
  // ids i32 and weights f32 [T, K], offsets i32 [G + 1], row_of i32 [T, K], src_of i32 [R], R = T * min(K, num_local)
  m.def(
      "moe_plan(Tensor ids, int num_local, Tensor? weights, Tensor(a!) offsets, Tensor(b!) row_of, "
      "Tensor(c!) src_of) -> ()");
  // x [T, H], q e4m3 [R, H], s f32 [R, ceil(H / 128)]
  m.def("moe_permute_quant(Tensor x, Tensor row_of, Tensor src_of, Tensor(a!) q, Tensor(b!) s) -> ()");
  // y [R, H], x, add and out [T, H]
  m.def(
      "moe_combine(Tensor y, Tensor row_of, Tensor weights, Tensor zero_weight, Tensor x, Tensor? add, "
      "Tensor(a!) out) -> ()");
  // w_gate_up [G, 2I, H], w_down [G, H, I]; scales only with e4m3 weights, gate_up then interleaved; the last three
  // inputs are a plan
  m.def(
      "fused_moe(Tensor x, Tensor ids, Tensor weights, Tensor zero_weight, Tensor w_gate_up, Tensor? gate_up_scales, "
      "Tensor w_down, Tensor? down_scales, Tensor? offsets, Tensor? row_of, Tensor? src_of, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CPU, m) {
  using namespace longcat_ops::bindings;
  m.impl("per_token_group_quant_fp8", TORCH_BOX(&per_token_group_quant_fp8_cpu));
  m.impl("per_block_quant_fp8", TORCH_BOX(&per_block_quant_fp8_cpu));
  m.impl("silu_and_mul_quant_fp8", TORCH_BOX(&silu_and_mul_quant_fp8_cpu));
  m.impl("dequant_fp8", TORCH_BOX(&dequant_fp8_cpu));
  m.impl("rms_norm", TORCH_BOX(&rms_norm_cpu));
  m.impl("rms_norm_quant_fp8", TORCH_BOX(&rms_norm_quant_fp8_cpu));
  m.impl("fp8_gemm_nt", TORCH_BOX(&fp8_gemm_nt_cpu));
  m.impl("m_grouped_fp8_gemm_nt_offset", TORCH_BOX(&m_grouped_fp8_gemm_nt_offset_cpu));
  m.impl("m_grouped_fp8_gemm_nt_masked", TORCH_BOX(&m_grouped_fp8_gemm_nt_masked_cpu));
  m.impl("m_grouped_fp8_gemm_nt_contiguous", TORCH_BOX(&m_grouped_fp8_gemm_nt_contiguous_cpu));
  m.impl("interleave_gate_up", TORCH_BOX(&interleave_gate_up_cpu));
  m.impl("m_grouped_fp8_swiglu_gemm_nt_offset", TORCH_BOX(&m_grouped_fp8_swiglu_gemm_nt_offset_cpu));
  m.impl("moe_route", TORCH_BOX(&moe_route_cpu));
  m.impl("moe_plan", TORCH_BOX(&moe_plan_cpu));
  m.impl("moe_permute_quant", TORCH_BOX(&moe_permute_quant_cpu));
  m.impl("moe_combine", TORCH_BOX(&moe_combine_cpu));
}

#ifdef LONGCAT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CUDA, m) {
  using namespace longcat_ops::bindings;
  m.impl("per_token_group_quant_fp8", TORCH_BOX(&per_token_group_quant_fp8_cuda));
  m.impl("per_block_quant_fp8", TORCH_BOX(&per_block_quant_fp8_cuda));
  m.impl("silu_and_mul_quant_fp8", TORCH_BOX(&silu_and_mul_quant_fp8_cuda));
  m.impl("dequant_fp8", TORCH_BOX(&dequant_fp8_cuda));
  m.impl("rms_norm_quant_fp8", TORCH_BOX(&rms_norm_quant_fp8_cuda));
  m.impl("fp8_gemm_nt", TORCH_BOX(&fp8_gemm_nt_cuda));
  m.impl("m_grouped_fp8_gemm_nt_offset", TORCH_BOX(&m_grouped_fp8_gemm_nt_offset_cuda));
  m.impl("m_grouped_fp8_gemm_nt_masked", TORCH_BOX(&m_grouped_fp8_gemm_nt_masked_cuda));
  m.impl("m_grouped_fp8_gemm_nt_contiguous", TORCH_BOX(&m_grouped_fp8_gemm_nt_contiguous_cuda));
  m.impl("m_grouped_fp8_swiglu_gemm_nt_offset", TORCH_BOX(&m_grouped_fp8_swiglu_gemm_nt_offset_cuda));
  m.impl("moe_route", TORCH_BOX(&moe_route_cuda));
  m.impl("moe_plan", TORCH_BOX(&moe_plan_cuda));
  m.impl("moe_permute_quant", TORCH_BOX(&moe_permute_quant_cuda));
  m.impl("moe_combine", TORCH_BOX(&moe_combine_cuda));
}
#endif
