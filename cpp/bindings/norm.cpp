#include "cpu/norm.h"

#include "bindings/call.h"
#include "bindings/parallel.h"
#include "common/constants.h"

namespace longcat_ops::bindings {
namespace {

void rms_norm_cpu(const Call& a) {
  const TensorDesc& x = a.tensor("x");
  const cpu::RmsNormParams params{
      .dtype = x.dtype,
      .x = a.matrix("x"),
      .y = a.matrix("y"),
      .weight = a.data<float>("weight"),
      .columns = x.sizes[1],
      .eps = static_cast<float>(a.number("eps")),
  };
  parallel_over(x.sizes[0], params.columns, [&](int64_t begin, int64_t end) { cpu::rms_norm(params, begin, end); });
}

void rms_norm_quant_fp8_cpu(const Call& a) {
  const TensorDesc& x = a.tensor("x");
  const int64_t columns = x.sizes[1];
  const bool has_residual = a.optional_tensor("residual");
  const cpu::AddParams add{
      .dtype = x.dtype,
      .a = a.matrix("x"),
      .b = a.matrix("residual"),
      .out = a.matrix(has_residual ? "residual_out" : "x"),
      .columns = columns,
  };
  const cpu::RmsNormParams norm{
      .dtype = x.dtype,
      .x = add.out,  // without a residual, x itself
      .y = a.matrix("y"),
      .weight = a.data<float>("weight"),
      .columns = columns,
      .eps = static_cast<float>(a.number("eps")),
  };
  const cpu::QuantParams quant{
      .x_dtype = x.dtype,
      .x = norm.y,
      .q = a.matrix("q"),
      .s = a.matrix("s"),
      .rows = x.sizes[0],
      .columns = columns,
      .block_rows = 1,
      .block_columns = kQuantBlock,
  };
  parallel_over(x.sizes[0], columns, [&](int64_t begin, int64_t end) {
    if (has_residual) cpu::add(add, begin, end);
    cpu::rms_norm(norm, begin, end);
    cpu::quant_fp8(quant, begin, end);
  });
}

}  // namespace
}  // namespace longcat_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CPU, m) {
  using namespace longcat_ops::bindings;
  add_kernel<"rms_norm", rms_norm_cpu>(m);
  add_kernel<"rms_norm_quant_fp8", rms_norm_quant_fp8_cpu>(m);
}
