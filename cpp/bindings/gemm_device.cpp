#include "bindings/device_launch.h"

namespace longcat_ops::bindings {
namespace {

void fp8_gemm_nt_device(const Call& a) {
  const lc_fp8_gemm_nt_args args{
      .struct_size = sizeof args,
      .a = device_matrix(a, "a"),
      .sa = device_matrix(a, "sa"),
      .b = device_matrix(a, "b"),
      .sb = device_matrix(a, "sb"),
      .split_k = static_cast<int32_t>(a.integer("split_k")),
      .out = device_matrix(a, "out"),
  };
  launch_on(a.tensor("a"), &KernelLibrary::lc_fp8_gemm_nt, args);
}

void m_grouped_fp8_gemm_nt_offset_device(const Call& a) {
  const lc_m_grouped_fp8_gemm_nt_offset_args args{
      .struct_size = sizeof args,
      .a = device_matrix(a, "a"),
      .sa = device_matrix(a, "sa"),
      .b = device_stack(a, "b"),
      .sb = device_stack(a, "sb"),
      .offsets = a.data<int32_t>("offsets"),
      .max_m_hint = a.optional_integer("max_m_hint").value_or(-1),
      .counts_ready = a.flag("counts_ready"),
      .split_k = static_cast<int32_t>(a.integer("split_k")),
      .out = device_matrix(a, "out"),
  };
  launch_on(a.tensor("a"), &KernelLibrary::lc_m_grouped_fp8_gemm_nt_offset, args);
}

void m_grouped_fp8_gemm_nt_masked_device(const Call& a) {
  const lc_m_grouped_fp8_gemm_nt_masked_args args{
      .struct_size = sizeof args,
      .a = device_stack(a, "a"),
      .sa = device_stack(a, "sa"),
      .b = device_stack(a, "b"),
      .sb = device_stack(a, "sb"),
      .masked_m = a.data<int32_t>("masked_m"),
      .expected_m = a.integer("expected_m"),
      .out = device_stack(a, "out"),
  };
  launch_on(a.tensor("a"), &KernelLibrary::lc_m_grouped_fp8_gemm_nt_masked, args);
}

void m_grouped_fp8_gemm_nt_contiguous_device(const Call& a) {
  const lc_m_grouped_fp8_gemm_nt_contiguous_args args{
      .struct_size = sizeof args,
      .a = device_matrix(a, "a"),
      .sa = device_matrix(a, "sa"),
      .b = device_stack(a, "b"),
      .sb = device_stack(a, "sb"),
      .m_indices = a.data<int32_t>("m_indices"),
      .out = device_matrix(a, "out"),
  };
  launch_on(a.tensor("a"), &KernelLibrary::lc_m_grouped_fp8_gemm_nt_contiguous, args);
}

void m_grouped_fp8_swiglu_gemm_nt_offset_device(const Call& a) {
  const lc_m_grouped_fp8_swiglu_gemm_nt_offset_args args{
      .struct_size = sizeof args,
      .a = device_matrix(a, "a"),
      .sa = device_matrix(a, "sa"),
      .gate_up = device_stack(a, "gate_up"),
      .s_gate_up = device_stack(a, "s_gate_up"),
      .offsets = a.data<int32_t>("offsets"),
      .max_m_hint = a.optional_integer("max_m_hint").value_or(-1),
      .counts_ready = a.flag("counts_ready"),
      .h = device_matrix(a, "h"),
      .sh = device_matrix(a, "sh"),
  };
  launch_on(a.tensor("a"), &KernelLibrary::lc_m_grouped_fp8_swiglu_gemm_nt_offset, args);
}

void bf16_gemm_nt_device(const Call& a) {
  const lc_bf16_gemm_nt_args args{
      .struct_size = sizeof args,
      .a = device_matrix(a, "a"),
      .b = device_matrix(a, "b"),
      .split_k = static_cast<int32_t>(a.integer("split_k")),
      .out = device_matrix(a, "out"),
  };
  launch_on(a.tensor("a"), &KernelLibrary::lc_bf16_gemm_nt, args);
}

void m_grouped_bf16_gemm_nt_offset_device(const Call& a) {
  const lc_m_grouped_bf16_gemm_nt_offset_args args{
      .struct_size = sizeof args,
      .a = device_matrix(a, "a"),
      .b = device_stack(a, "b"),
      .offsets = a.data<int32_t>("offsets"),
      .max_m_hint = a.optional_integer("max_m_hint").value_or(-1),
      .counts_ready = a.flag("counts_ready"),
      .split_k = static_cast<int32_t>(a.integer("split_k")),
      .out = device_matrix(a, "out"),
  };
  launch_on(a.tensor("a"), &KernelLibrary::lc_m_grouped_bf16_gemm_nt_offset, args);
}

void m_grouped_bf16_gemm_nt_masked_device(const Call& a) {
  const lc_m_grouped_bf16_gemm_nt_masked_args args{
      .struct_size = sizeof args,
      .a = device_stack(a, "a"),
      .b = device_stack(a, "b"),
      .masked_m = a.data<int32_t>("masked_m"),
      .expected_m = a.integer("expected_m"),
      .out = device_stack(a, "out"),
  };
  launch_on(a.tensor("a"), &KernelLibrary::lc_m_grouped_bf16_gemm_nt_masked, args);
}

void m_grouped_bf16_gemm_nt_contiguous_device(const Call& a) {
  const lc_m_grouped_bf16_gemm_nt_contiguous_args args{
      .struct_size = sizeof args,
      .a = device_matrix(a, "a"),
      .b = device_stack(a, "b"),
      .m_indices = a.data<int32_t>("m_indices"),
      .out = device_matrix(a, "out"),
  };
  launch_on(a.tensor("a"), &KernelLibrary::lc_m_grouped_bf16_gemm_nt_contiguous, args);
}

void m_grouped_bf16_swiglu_gemm_nt_offset_device(const Call& a) {
  const lc_m_grouped_bf16_swiglu_gemm_nt_offset_args args{
      .struct_size = sizeof args,
      .a = device_matrix(a, "a"),
      .gate_up = device_stack(a, "gate_up"),
      .offsets = a.data<int32_t>("offsets"),
      .max_m_hint = a.optional_integer("max_m_hint").value_or(-1),
      .counts_ready = a.flag("counts_ready"),
      .h = device_matrix(a, "h"),
      .sh = device_matrix(a, "sh"),
  };
  launch_on(a.tensor("a"), &KernelLibrary::lc_m_grouped_bf16_swiglu_gemm_nt_offset, args);
}

void register_gemm(torch::stable::detail::StableLibrary& m) {
  add_device_kernel<"fp8_gemm_nt", fp8_gemm_nt_device>(m);
  add_device_kernel<"m_grouped_fp8_gemm_nt_offset", m_grouped_fp8_gemm_nt_offset_device>(m);
  add_device_kernel<"m_grouped_fp8_gemm_nt_masked", m_grouped_fp8_gemm_nt_masked_device>(m);
  add_device_kernel<"m_grouped_fp8_gemm_nt_contiguous", m_grouped_fp8_gemm_nt_contiguous_device>(m);
  add_device_kernel<"m_grouped_fp8_swiglu_gemm_nt_offset", m_grouped_fp8_swiglu_gemm_nt_offset_device>(m);
  add_device_kernel<"bf16_gemm_nt", bf16_gemm_nt_device>(m);
  add_device_kernel<"m_grouped_bf16_gemm_nt_offset", m_grouped_bf16_gemm_nt_offset_device>(m);
  add_device_kernel<"m_grouped_bf16_gemm_nt_masked", m_grouped_bf16_gemm_nt_masked_device>(m);
  add_device_kernel<"m_grouped_bf16_gemm_nt_contiguous", m_grouped_bf16_gemm_nt_contiguous_device>(m);
  add_device_kernel<"m_grouped_bf16_swiglu_gemm_nt_offset", m_grouped_bf16_swiglu_gemm_nt_offset_device>(m);
}

}  // namespace
}  // namespace longcat_ops::bindings

LC_REGISTER_DEVICE_KERNELS(register_gemm)
