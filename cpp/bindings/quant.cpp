#include <torch/csrc/stable/library.h>

#include "bindings/parallel.h"
#include "bindings/tensor_args.h"
#include "check/quant_check.h"
#include "check/tensor_checks.h"
#include "common/numeric.h"
#include "cpu/quant.h"

namespace longcat_ops::bindings {
namespace {

void run_quant(const Tensor& x, const TensorDesc& x_desc, const Tensor& q, const TensorDesc& q_desc, const Tensor& s,
               const TensorDesc& s_desc, int64_t block_rows, int64_t block_columns) {
  const cpu::QuantParams params{
      .x_dtype = x_desc.dtype,
      .x = matrix_view(x.const_data_ptr(), x_desc),
      .q = matrix_view(q.mutable_data_ptr(), q_desc),
      .s = matrix_view(s.mutable_data_ptr(), s_desc),
      .rows = x_desc.sizes[0],
      .columns = x_desc.sizes[1],
      .block_rows = block_rows,
      .block_columns = block_columns,
  };
  parallel_over(ceil_div(params.rows, block_rows), block_rows * params.columns,
                [&](int64_t begin, int64_t end) { cpu::quant_fp8(params, begin, end); });
}

void per_token_group_quant_fp8_cpu(const Tensor& x, int64_t group_size, const Tensor& q, const Tensor& s) {
  const TensorDesc x_desc = describe_tensor(x), q_desc = describe_tensor(q), s_desc = describe_tensor(s);
  check_per_token_group_quant_fp8(x_desc, group_size, &q_desc, &s_desc);
  run_quant(x, x_desc, q, q_desc, s, s_desc, 1, group_size);
}

void per_block_quant_fp8_cpu(const Tensor& w, const Tensor& q, const Tensor& s) {
  const TensorDesc w_desc = describe_tensor(w), q_desc = describe_tensor(q), s_desc = describe_tensor(s);
  check_per_block_quant_fp8(w_desc, &q_desc, &s_desc);
  run_quant(w, w_desc, q, q_desc, s, s_desc, kQuantBlock, kQuantBlock);
}

void silu_and_mul_quant_fp8_cpu(const Tensor& gate_up, const Tensor& q, const Tensor& s) {
  const TensorDesc in_desc = describe_tensor(gate_up), q_desc = describe_tensor(q), s_desc = describe_tensor(s);
  check_silu_and_mul_quant_fp8(in_desc, &q_desc, &s_desc);
  const cpu::SiluAndMulQuantParams params{
      .dtype = in_desc.dtype,
      .gate_up = matrix_view(gate_up.const_data_ptr(), in_desc),
      .q = matrix_view(q.mutable_data_ptr(), q_desc),
      .s = matrix_view(s.mutable_data_ptr(), s_desc),
      .width = q_desc.sizes[1],
  };
  parallel_over(in_desc.sizes[0], 4 * params.width,
                [&](int64_t begin, int64_t end) { cpu::silu_and_mul_quant_fp8(params, begin, end); });
}

void dequant_fp8_cpu(const Tensor& q, const Tensor& s, int64_t group_size, const Tensor& out) {
  const TensorDesc q_desc = describe_tensor(q), s_desc = describe_tensor(s), out_desc = describe_tensor(out);
  check_dequant_fp8(q_desc, s_desc, group_size, &out_desc);
  const bool per_row = scales_are_per_row(q_desc, s_desc, group_size);
  const cpu::DequantParams params{
      .out_dtype = out_desc.dtype,
      .q = matrix_view(q.const_data_ptr(), q_desc),
      .s = matrix_view(s.const_data_ptr(), s_desc),
      .out = matrix_view(out.mutable_data_ptr(), out_desc),
      .rows = q_desc.sizes[0],
      .columns = q_desc.sizes[1],
      .block_rows = per_row ? 1 : kQuantBlock,
      .block_columns = per_row ? group_size : kQuantBlock,
  };
  parallel_over(params.rows, params.columns, [&](int64_t begin, int64_t end) { cpu::dequant_fp8(params, begin, end); });
}

}  // namespace
}  // namespace longcat_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CPU, m) {
  using namespace longcat_ops::bindings;
  m.impl("per_token_group_quant_fp8", TORCH_BOX(&per_token_group_quant_fp8_cpu));
  m.impl("per_block_quant_fp8", TORCH_BOX(&per_block_quant_fp8_cpu));
  m.impl("silu_and_mul_quant_fp8", TORCH_BOX(&silu_and_mul_quant_fp8_cpu));
  m.impl("dequant_fp8", TORCH_BOX(&dequant_fp8_cpu));
}
