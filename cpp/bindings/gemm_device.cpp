#include <torch/csrc/stable/library.h>

#include "bindings/device_launch.h"
#include "check/gemm_check.h"

namespace longcat_ops::bindings {
namespace {

const int32_t* indices(const Tensor& tensor) { return static_cast<const int32_t*>(tensor.const_data_ptr()); }

void fp8_gemm_nt_device(const Tensor& a, const Tensor& sa, const Tensor& b, const Tensor& sb, int64_t split_k,
                        const Tensor& out) {
  const TensorDesc a_desc = describe_tensor(a), sa_desc = describe_tensor(sa), b_desc = describe_tensor(b),
                   sb_desc = describe_tensor(sb), out_desc = describe_tensor(out);
  if (arguments_are_checked()) check_fp8_gemm_nt({a_desc, sa_desc}, {b_desc, sb_desc}, split_k, &out_desc);
  const lc_matrix rows = device_matrix(a, a_desc), scales = device_matrix(sa, sa_desc),
                  weight = device_matrix(b, b_desc), weight_scales = device_matrix(sb, sb_desc),
                  sums = device_output(out, out_desc);
  const lc_fp8_gemm_nt_args args{sizeof args, rows, scales, weight, weight_scales, static_cast<int32_t>(split_k), sums};
  launch_on(a_desc, &KernelLibrary::lc_fp8_gemm_nt, args);
}

void m_grouped_fp8_gemm_nt_offset_device(const Tensor& a, const Tensor& sa, const Tensor& b, const Tensor& sb,
                                         const Tensor& offsets, std::optional<int64_t> max_m_hint, bool counts_ready,
                                         int64_t split_k, const Tensor& out) {
  const TensorDesc a_desc = describe_tensor(a), sa_desc = describe_tensor(sa), b_desc = describe_tensor(b),
                   sb_desc = describe_tensor(sb), out_desc = describe_tensor(out);
  if (arguments_are_checked())
    check_m_grouped_fp8_gemm_nt_offset({a_desc, sa_desc}, {b_desc, sb_desc}, describe_tensor(offsets), max_m_hint,
                                       split_k, &out_desc);
  const lc_matrix rows = device_matrix(a, a_desc), scales = device_matrix(sa, sa_desc),
                  sums = device_output(out, out_desc);
  const lc_stack weights = device_stack(b, b_desc), weight_scales = device_stack(sb, sb_desc);
  const lc_m_grouped_fp8_gemm_nt_offset_args args{sizeof args,
                                                  rows,
                                                  scales,
                                                  weights,
                                                  weight_scales,
                                                  indices(offsets),
                                                  max_m_hint.value_or(-1),
                                                  counts_ready ? 1 : 0,
                                                  static_cast<int32_t>(split_k),
                                                  sums};
  launch_on(a_desc, &KernelLibrary::lc_m_grouped_fp8_gemm_nt_offset, args);
}

void m_grouped_fp8_gemm_nt_masked_device(const Tensor& a, const Tensor& sa, const Tensor& b, const Tensor& sb,
                                         const Tensor& masked_m, int64_t expected_m, const Tensor& out) {
  const TensorDesc a_desc = describe_tensor(a), sa_desc = describe_tensor(sa), b_desc = describe_tensor(b),
                   sb_desc = describe_tensor(sb), out_desc = describe_tensor(out);
  if (arguments_are_checked())
    check_m_grouped_fp8_gemm_nt_masked({a_desc, sa_desc}, {b_desc, sb_desc}, describe_tensor(masked_m), expected_m,
                                       &out_desc);
  const lc_stack rows = device_stack(a, a_desc), scales = device_stack(sa, sa_desc),
                 sums = device_output_stack(out, out_desc), weights = device_stack(b, b_desc),
                 weight_scales = device_stack(sb, sb_desc);
  const lc_m_grouped_fp8_gemm_nt_masked_args args{sizeof args,       rows,       scales, weights, weight_scales,
                                                  indices(masked_m), expected_m, sums};
  launch_on(a_desc, &KernelLibrary::lc_m_grouped_fp8_gemm_nt_masked, args);
}

void m_grouped_fp8_gemm_nt_contiguous_device(const Tensor& a, const Tensor& sa, const Tensor& b, const Tensor& sb,
                                             const Tensor& m_indices, const Tensor& out) {
  const TensorDesc a_desc = describe_tensor(a), sa_desc = describe_tensor(sa), b_desc = describe_tensor(b),
                   sb_desc = describe_tensor(sb), out_desc = describe_tensor(out);
  if (arguments_are_checked())
    check_m_grouped_fp8_gemm_nt_contiguous({a_desc, sa_desc}, {b_desc, sb_desc}, describe_tensor(m_indices), &out_desc);
  const lc_matrix rows = device_matrix(a, a_desc), scales = device_matrix(sa, sa_desc),
                  sums = device_output(out, out_desc);
  const lc_stack weights = device_stack(b, b_desc), weight_scales = device_stack(sb, sb_desc);
  const lc_m_grouped_fp8_gemm_nt_contiguous_args args{sizeof args,        rows, scales, weights, weight_scales,
                                                      indices(m_indices), sums};
  launch_on(a_desc, &KernelLibrary::lc_m_grouped_fp8_gemm_nt_contiguous, args);
}

void m_grouped_fp8_swiglu_gemm_nt_offset_device(const Tensor& a, const Tensor& sa, const Tensor& gate_up,
                                                const Tensor& s_gate_up, const Tensor& offsets,
                                                std::optional<int64_t> max_m_hint, bool counts_ready, const Tensor& h,
                                                const Tensor& sh) {
  const TensorDesc a_desc = describe_tensor(a), sa_desc = describe_tensor(sa), w_desc = describe_tensor(gate_up),
                   sw_desc = describe_tensor(s_gate_up), h_desc = describe_tensor(h), sh_desc = describe_tensor(sh);
  if (arguments_are_checked())
    check_m_grouped_fp8_swiglu_gemm_nt_offset({a_desc, sa_desc}, {w_desc, sw_desc}, describe_tensor(offsets),
                                              max_m_hint, &h_desc, &sh_desc);
  const lc_matrix rows = device_matrix(a, a_desc), scales = device_matrix(sa, sa_desc),
                  codes = device_output(h, h_desc), code_scales = device_output(sh, sh_desc);
  const lc_stack weights = device_stack(gate_up, w_desc), weight_scales = device_stack(s_gate_up, sw_desc);
  const lc_m_grouped_fp8_swiglu_gemm_nt_offset_args args{
      sizeof args,          rows,  scales,     weights, weight_scales, indices(offsets), max_m_hint.value_or(-1),
      counts_ready ? 1 : 0, codes, code_scales};
  launch_on(a_desc, &KernelLibrary::lc_m_grouped_fp8_swiglu_gemm_nt_offset, args);
}

void register_gemm(torch::stable::detail::StableLibrary& m) {
  m.impl("fp8_gemm_nt", TORCH_BOX(&fp8_gemm_nt_device));
  m.impl("m_grouped_fp8_gemm_nt_offset", TORCH_BOX(&m_grouped_fp8_gemm_nt_offset_device));
  m.impl("m_grouped_fp8_gemm_nt_masked", TORCH_BOX(&m_grouped_fp8_gemm_nt_masked_device));
  m.impl("m_grouped_fp8_gemm_nt_contiguous", TORCH_BOX(&m_grouped_fp8_gemm_nt_contiguous_device));
  m.impl("m_grouped_fp8_swiglu_gemm_nt_offset", TORCH_BOX(&m_grouped_fp8_swiglu_gemm_nt_offset_device));
}

}  // namespace
}  // namespace longcat_ops::bindings

LC_REGISTER_DEVICE_KERNELS(register_gemm)
