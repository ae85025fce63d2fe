#include "bindings/device_launch.h"

namespace longcat_ops::bindings {
namespace {

void rms_norm_device(const Call& a) {
  const lc_rms_norm_args args{
      .struct_size = sizeof args,
      .x = device_matrix(a, "x"),
      .weight = a.data<float>("weight"),
      .eps = a.number("eps"),
      .residual = device_matrix(a, "residual"),
      .y = device_matrix(a, "y"),
      .residual_out = device_matrix(a, "residual_out"),
  };
  launch_on(a.tensor("x"), &KernelLibrary::lc_rms_norm, args);
}

void embed_rows_device(const Call& a) {
  const lc_embed_rows_args args{
      .struct_size = sizeof args,
      .table = device_matrix(a, "table"),
      .ids = a.data<int64_t>("ids"),
      .out = device_matrix(a, "out"),
  };
  launch_on(a.tensor("table"), &KernelLibrary::lc_embed_rows, args);
}

void add_rows_device(const Call& a) {
  const lc_add_rows_args args{
      .struct_size = sizeof args,
      .x = device_matrix(a, "x"),
      .y = device_matrix(a, "y"),
      .out = device_matrix(a, "out"),
  };
  launch_on(a.tensor("x"), &KernelLibrary::lc_add_rows, args);
}

void silu_and_mul_device(const Call& a) {
  const lc_silu_and_mul_args args{
      .struct_size = sizeof args,
      .gate_up = device_matrix(a, "gate_up"),
      .out = device_matrix(a, "out"),
  };
  launch_on(a.tensor("gate_up"), &KernelLibrary::lc_silu_and_mul, args);
}

void register_rows(torch::stable::detail::StableLibrary& m) {
  add_device_kernel<"rms_norm", rms_norm_device>(m);
  add_device_kernel<"embed_rows", embed_rows_device>(m);
  add_device_kernel<"add_rows", add_rows_device>(m);
  add_device_kernel<"silu_and_mul", silu_and_mul_device>(m);
}

}  // namespace
}  // namespace longcat_ops::bindings

LC_REGISTER_DEVICE_KERNELS(register_rows)
