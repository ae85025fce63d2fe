#include "cpu/quant.h"

#include "bindings/call.h"
#include "bindings/parallel.h"
#include "check/scales.h"
#include "common/constants.h"
#include "common/numeric.h"

namespace longcat_ops::bindings {
namespace {

void run_quant(const Call& a, const char* input, int64_t block_rows, int64_t block_columns) {
  const TensorDesc& x = a.tensor(input);
  const cpu::QuantParams params{
      .x_dtype = x.dtype,
      .x = a.matrix(input),
      .q = a.matrix("q"),
      .s = a.matrix("s"),
      .rows = x.sizes[0],
      .columns = x.sizes[1],
      .block_rows = block_rows,
      .block_columns = block_columns,
  };
  parallel_over(ceil_div(params.rows, block_rows), block_rows * params.columns,
                [&](int64_t begin, int64_t end) { cpu::quant_fp8(params, begin, end); });
}

void per_token_group_quant_fp8_cpu(const Call& a) { run_quant(a, "x", 1, a.integer("group_size")); }

void per_block_quant_fp8_cpu(const Call& a) { run_quant(a, "w", kQuantBlock, kQuantBlock); }

void silu_and_mul_quant_fp8_cpu(const Call& a) {
  const TensorDesc& gate_up = a.tensor("gate_up");
  const cpu::SiluAndMulQuantParams params{
      .dtype = gate_up.dtype,
      .gate_up = a.matrix("gate_up"),
      .q = a.matrix("q"),
      .s = a.matrix("s"),
      .width = a.tensor("q").sizes[1],
  };
  parallel_over(gate_up.sizes[0], 4 * params.width,
                [&](int64_t begin, int64_t end) { cpu::silu_and_mul_quant_fp8(params, begin, end); });
}

void dequant_fp8_cpu(const Call& a) {
  const TensorDesc& q = a.tensor("q");
  const int64_t group_size = a.integer("group_size");
  const bool per_row = scales_are_per_row(q, a.tensor("s"), group_size);
  const cpu::DequantParams params{
      .out_dtype = a.tensor("out").dtype,
      .q = a.matrix("q"),
      .s = a.matrix("s"),
      .out = a.matrix("out"),
      .rows = q.sizes[0],
      .columns = q.sizes[1],
      .block_rows = per_row ? 1 : kQuantBlock,
      .block_columns = per_row ? group_size : kQuantBlock,
  };
  parallel_over(params.rows, params.columns, [&](int64_t begin, int64_t end) { cpu::dequant_fp8(params, begin, end); });
}

}  // namespace
}  // namespace longcat_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CPU, m) {
  using namespace longcat_ops::bindings;
  add_cpu_kernel<"per_token_group_quant_fp8", per_token_group_quant_fp8_cpu>(m);
  add_cpu_kernel<"per_block_quant_fp8", per_block_quant_fp8_cpu>(m);
  add_cpu_kernel<"silu_and_mul_quant_fp8", silu_and_mul_quant_fp8_cpu>(m);
  add_cpu_kernel<"dequant_fp8", dequant_fp8_cpu>(m);
}
