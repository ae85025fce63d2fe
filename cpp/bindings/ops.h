// The torch-facing functions behind the schemas of torch_ops.cpp.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace longcat_ops::bindings {

using torch::stable::Tensor;

void per_token_group_quant_fp8_cpu(const Tensor& x, int64_t group_size, const Tensor& q, const Tensor& s);
void per_block_quant_fp8_cpu(const Tensor& w, const Tensor& q, const Tensor& s);
void dequant_fp8_cpu(const Tensor& q, const Tensor& s, int64_t group_size, const Tensor& out);
void silu_and_mul_quant_fp8_cpu(const Tensor& gate_up, const Tensor& q, const Tensor& s);
void rms_norm_cpu(const Tensor& x, const Tensor& weight, double eps, const Tensor& y);
void rms_norm_quant_fp8_cpu(const Tensor& x, const Tensor& weight, double eps, const std::optional<Tensor>& residual,
                            const Tensor& q, const Tensor& s, const Tensor& y,
                            const std::optional<Tensor>& residual_out);

void fp8_gemm_nt_cpu(const Tensor& a, const Tensor& sa, const Tensor& b, const Tensor& sb, int64_t split_k,
                     const Tensor& out);
void m_grouped_fp8_gemm_nt_offset_cpu(const Tensor& a, const Tensor& sa, const Tensor& b, const Tensor& sb,
                                      const Tensor& offsets, std::optional<int64_t> max_m_hint, bool counts_ready,
                                      int64_t split_k, const Tensor& out);
void m_grouped_fp8_gemm_nt_masked_cpu(const Tensor& a, const Tensor& sa, const Tensor& b, const Tensor& sb,
                                      const Tensor& masked_m, int64_t expected_m, const Tensor& out);
void m_grouped_fp8_gemm_nt_contiguous_cpu(const Tensor& a, const Tensor& sa, const Tensor& b, const Tensor& sb,
                                          const Tensor& m_indices, const Tensor& out);
void interleave_gate_up_cpu(const Tensor& w, const Tensor& s, const Tensor& w_out, const Tensor& s_out);
void m_grouped_fp8_swiglu_gemm_nt_offset_cpu(const Tensor& a, const Tensor& sa, const Tensor& gate_up,
                                             const Tensor& s_gate_up, const Tensor& offsets,
                                             std::optional<int64_t> max_m_hint, bool counts_ready, const Tensor& h,
                                             const Tensor& sh);

void moe_route_cpu(const Tensor& logits, const Tensor& bias, const std::optional<Tensor>& num_valid, int64_t top_k,
                   int64_t num_experts, int64_t num_zero_experts, double scale, const Tensor& ids,
                   const Tensor& weights, const Tensor& zero_weight, const Tensor& num_real, const Tensor& counts,
                   const Tensor& errors);
void moe_plan_cpu(const Tensor& ids, int64_t num_local, const std::optional<Tensor>& weights, const Tensor& offsets,
                  const Tensor& row_of, const Tensor& src_of);
void moe_permute_quant_cpu(const Tensor& x, const Tensor& row_of, const Tensor& src_of, const Tensor& q,
                           const Tensor& s);
void moe_combine_cpu(const Tensor& y, const Tensor& row_of, const Tensor& weights, const Tensor& zero_weight,
                     const Tensor& x, const std::optional<Tensor>& add, const Tensor& out);

// With LONGCAT_WITH_CUDA: the same on a GPU, through liblongcat_kernels.so.
void per_token_group_quant_fp8_cuda(const Tensor& x, int64_t group_size, const Tensor& q, const Tensor& s);
void per_block_quant_fp8_cuda(const Tensor& w, const Tensor& q, const Tensor& s);
void silu_and_mul_quant_fp8_cuda(const Tensor& gate_up, const Tensor& q, const Tensor& s);
void dequant_fp8_cuda(const Tensor& q, const Tensor& s, int64_t group_size, const Tensor& out);
void rms_norm_quant_fp8_cuda(const Tensor& x, const Tensor& weight, double eps, const std::optional<Tensor>& residual,
                             const Tensor& q, const Tensor& s, const Tensor& y,
                             const std::optional<Tensor>& residual_out);
void moe_permute_quant_cuda(const Tensor& x, const Tensor& row_of, const Tensor& src_of, const Tensor& q,
                            const Tensor& s);
void moe_combine_cuda(const Tensor& y, const Tensor& row_of, const Tensor& weights, const Tensor& zero_weight,
                      const Tensor& x, const std::optional<Tensor>& add, const Tensor& out);

void fp8_gemm_nt_cuda(const Tensor& a, const Tensor& sa, const Tensor& b, const Tensor& sb, int64_t split_k,
                      const Tensor& out);
void m_grouped_fp8_gemm_nt_offset_cuda(const Tensor& a, const Tensor& sa, const Tensor& b, const Tensor& sb,
                                       const Tensor& offsets, std::optional<int64_t> max_m_hint, bool counts_ready,
                                       int64_t split_k, const Tensor& out);
void m_grouped_fp8_gemm_nt_masked_cuda(const Tensor& a, const Tensor& sa, const Tensor& b, const Tensor& sb,
                                       const Tensor& masked_m, int64_t expected_m, const Tensor& out);
void m_grouped_fp8_gemm_nt_contiguous_cuda(const Tensor& a, const Tensor& sa, const Tensor& b, const Tensor& sb,
                                           const Tensor& m_indices, const Tensor& out);
void m_grouped_fp8_swiglu_gemm_nt_offset_cuda(const Tensor& a, const Tensor& sa, const Tensor& gate_up,
                                              const Tensor& s_gate_up, const Tensor& offsets,
                                              std::optional<int64_t> max_m_hint, bool counts_ready, const Tensor& h,
                                              const Tensor& sh);

void moe_route_cuda(const Tensor& logits, const Tensor& bias, const std::optional<Tensor>& num_valid, int64_t top_k,
                    int64_t num_experts, int64_t num_zero_experts, double scale, const Tensor& ids,
                    const Tensor& weights, const Tensor& zero_weight, const Tensor& num_real, const Tensor& counts,
                    const Tensor& errors);
void moe_plan_cuda(const Tensor& ids, int64_t num_local, const std::optional<Tensor>& weights, const Tensor& offsets,
                   const Tensor& row_of, const Tensor& src_of);

}  // namespace longcat_ops::bindings
