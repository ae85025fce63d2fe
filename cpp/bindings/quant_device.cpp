#include "bindings/device_launch.h"

namespace longcat_ops::bindings {
namespace {

void per_token_group_quant_fp8_device(const Call& a) {
  const lc_per_token_group_quant_fp8_args args{
      .struct_size = sizeof args,
      .x = device_matrix(a, "x"),
      .group_size = a.integer("group_size"),
      .q = device_matrix(a, "q"),
      .s = device_matrix(a, "s"),
  };
  launch_on(a.tensor("x"), &KernelLibrary::lc_per_token_group_quant_fp8, args);
}

void per_block_quant_fp8_device(const Call& a) {
  const lc_per_block_quant_fp8_args args{
      .struct_size = sizeof args,
      .w = device_matrix(a, "w"),
      .q = device_matrix(a, "q"),
      .s = device_matrix(a, "s"),
  };
  launch_on(a.tensor("w"), &KernelLibrary::lc_per_block_quant_fp8, args);
}

void silu_and_mul_quant_fp8_device(const Call& a) {
  const lc_silu_and_mul_quant_fp8_args args{
      .struct_size = sizeof args,
      .gate_up = device_matrix(a, "gate_up"),
      .q = device_matrix(a, "q"),
      .s = device_matrix(a, "s"),
  };
  launch_on(a.tensor("gate_up"), &KernelLibrary::lc_silu_and_mul_quant_fp8, args);
}

void dequant_fp8_device(const Call& a) {
  const lc_dequant_fp8_args args{
      .struct_size = sizeof args,
      .q = device_matrix(a, "q"),
      .s = device_matrix(a, "s"),
      .group_size = a.integer("group_size"),
      .out = device_matrix(a, "out"),
  };
  launch_on(a.tensor("q"), &KernelLibrary::lc_dequant_fp8, args);
}

void rms_norm_quant_fp8_device(const Call& a) {
  const lc_rms_norm_quant_fp8_args args{
      .struct_size = sizeof args,
      .x = device_matrix(a, "x"),
      .weight = a.data<float>("weight"),
      .eps = a.number("eps"),
      .residual = device_matrix(a, "residual"),
      .q = device_matrix(a, "q"),
      .s = device_matrix(a, "s"),
      .y = device_matrix(a, "y"),
      .residual_out = device_matrix(a, "residual_out"),
  };
  launch_on(a.tensor("x"), &KernelLibrary::lc_rms_norm_quant_fp8, args);
}

void register_quant(torch::stable::detail::StableLibrary& m) {
  add_device_kernel<"per_token_group_quant_fp8", per_token_group_quant_fp8_device>(m);
  add_device_kernel<"per_block_quant_fp8", per_block_quant_fp8_device>(m);
  add_device_kernel<"silu_and_mul_quant_fp8", silu_and_mul_quant_fp8_device>(m);
  add_device_kernel<"dequant_fp8", dequant_fp8_device>(m);
  add_device_kernel<"rms_norm_quant_fp8", rms_norm_quant_fp8_device>(m);
}

}  // namespace
}  // namespace longcat_ops::bindings

LC_REGISTER_DEVICE_KERNELS(register_quant)
