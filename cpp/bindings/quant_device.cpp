#include <torch/csrc/stable/library.h>

#include "bindings/device_launch.h"
#include "check/norm_check.h"
#include "check/quant_check.h"

namespace longcat_ops::bindings {
namespace {

void per_token_group_quant_fp8_device(const Tensor& x, int64_t group_size, const Tensor& q, const Tensor& s) {
  const TensorDesc x_desc = describe_tensor(x), q_desc = describe_tensor(q), s_desc = describe_tensor(s);
  if (arguments_are_checked()) check_per_token_group_quant_fp8(x_desc, group_size, &q_desc, &s_desc);
  const lc_matrix in = device_matrix(x, x_desc), values = device_output(q, q_desc), scales = device_output(s, s_desc);
  const lc_per_token_group_quant_fp8_args args{sizeof args, in, group_size, values, scales};
  launch_on(x_desc, &KernelLibrary::lc_per_token_group_quant_fp8, args);
}

void per_block_quant_fp8_device(const Tensor& w, const Tensor& q, const Tensor& s) {
  const TensorDesc w_desc = describe_tensor(w), q_desc = describe_tensor(q), s_desc = describe_tensor(s);
  if (arguments_are_checked()) check_per_block_quant_fp8(w_desc, &q_desc, &s_desc);
  const lc_matrix in = device_matrix(w, w_desc), values = device_output(q, q_desc), scales = device_output(s, s_desc);
  const lc_per_block_quant_fp8_args args{sizeof args, in, values, scales};
  launch_on(w_desc, &KernelLibrary::lc_per_block_quant_fp8, args);
}

void silu_and_mul_quant_fp8_device(const Tensor& gate_up, const Tensor& q, const Tensor& s) {
  const TensorDesc in_desc = describe_tensor(gate_up), q_desc = describe_tensor(q), s_desc = describe_tensor(s);
  if (arguments_are_checked()) check_silu_and_mul_quant_fp8(in_desc, &q_desc, &s_desc);
  const lc_matrix in = device_matrix(gate_up, in_desc), values = device_output(q, q_desc),
                  scales = device_output(s, s_desc);
  const lc_silu_and_mul_quant_fp8_args args{sizeof args, in, values, scales};
  launch_on(in_desc, &KernelLibrary::lc_silu_and_mul_quant_fp8, args);
}

void dequant_fp8_device(const Tensor& q, const Tensor& s, int64_t group_size, const Tensor& out) {
  const TensorDesc q_desc = describe_tensor(q), s_desc = describe_tensor(s), out_desc = describe_tensor(out);
  if (arguments_are_checked()) check_dequant_fp8(q_desc, s_desc, group_size, &out_desc);
  const lc_matrix values = device_matrix(q, q_desc), scales = device_matrix(s, s_desc),
                  wide = device_output(out, out_desc);
  const lc_dequant_fp8_args args{sizeof args, values, scales, group_size, wide};
  launch_on(q_desc, &KernelLibrary::lc_dequant_fp8, args);
}

void rms_norm_quant_fp8_device(const Tensor& x, const Tensor& weight, double eps, const std::optional<Tensor>& residual,
                               const Tensor& q, const Tensor& s, const Tensor& y,
                               const std::optional<Tensor>& residual_out) {
  const TensorDesc x_desc = describe_tensor(x), q_desc = describe_tensor(q), s_desc = describe_tensor(s),
                   y_desc = describe_tensor(y);
  const OptionalDesc residual_desc(residual), residual_out_desc(residual_out);
  if (arguments_are_checked())
    check_rms_norm_quant_fp8(x_desc, describe_tensor(weight), eps, residual_desc.get(), &q_desc, &s_desc, &y_desc,
                             residual_out_desc.get());
  const lc_matrix in = device_matrix(x, x_desc), values = device_output(q, q_desc), scales = device_output(s, s_desc),
                  normed = device_output(y, y_desc);
  lc_matrix residual_in{}, sum{};
  if (residual) {
    residual_in = device_matrix(*residual, *residual_desc.get());
    sum = device_output(*residual_out, *residual_out_desc.get());
  }
  const lc_rms_norm_quant_fp8_args args{sizeof args, in, const_data<float>(weight), eps, residual_in, values, scales,
                                        normed,      sum};
  launch_on(x_desc, &KernelLibrary::lc_rms_norm_quant_fp8, args);
}

void register_quant(torch::stable::detail::StableLibrary& m) {
  m.impl("per_token_group_quant_fp8", TORCH_BOX(&per_token_group_quant_fp8_device));
  m.impl("per_block_quant_fp8", TORCH_BOX(&per_block_quant_fp8_device));
  m.impl("silu_and_mul_quant_fp8", TORCH_BOX(&silu_and_mul_quant_fp8_device));
  m.impl("dequant_fp8", TORCH_BOX(&dequant_fp8_device));
  m.impl("rms_norm_quant_fp8", TORCH_BOX(&rms_norm_quant_fp8_device));
}

}  // namespace
}  // namespace longcat_ops::bindings

LC_REGISTER_DEVICE_KERNELS(register_quant)
