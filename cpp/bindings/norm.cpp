#include "cpu/norm.h"

#include "bindings/call.h"
#include "bindings/parallel.h"
#include "common/constants.h"

namespace longcat_ops::bindings {
namespace {

// rms_norm of x, or of x + residual, which goes to residual_out first.
struct Norm {
  explicit Norm(const Call& a)
      : has_residual(a.optional_tensor("residual")),
        add{
            .dtype = a.tensor("x").dtype,
            .a = a.matrix("x"),
            .b = a.matrix("residual"),
            .out = a.matrix(has_residual ? "residual_out" : "x"),
            .columns = a.tensor("x").sizes[1],
        },
        norm{
            .dtype = add.dtype,
            .x = add.out,  // without a residual, x itself
            .y = a.matrix("y"),
            .weight = a.data<float>("weight"),
            .columns = add.columns,
            .eps = static_cast<float>(a.number("eps")),
        } {}

  void operator()(int64_t begin, int64_t end) const {
    if (has_residual) cpu::add(add, begin, end);
    cpu::rms_norm(norm, begin, end);
  }

  bool has_residual;
  cpu::AddParams add;
  cpu::RmsNormParams norm;
};

void rms_norm_cpu(const Call& a) {
  const Norm norm(a);
  parallel_over(a.tensor("x").sizes[0], norm.add.columns, norm);
}

void rms_norm_quant_fp8_cpu(const Call& a) {
  const TensorDesc& x = a.tensor("x");
  const int64_t columns = x.sizes[1];
  const Norm norm(a);
  const cpu::QuantParams quant{
      .x_dtype = x.dtype,
      .x = norm.norm.y,
      .q = a.matrix("q"),
      .s = a.matrix("s"),
      .rows = x.sizes[0],
      .columns = columns,
      .block_rows = 1,
      .block_columns = kQuantBlock,
  };
  parallel_over(x.sizes[0], columns, [&](int64_t begin, int64_t end) {
    norm(begin, end);
    cpu::quant_fp8(quant, begin, end);
  });
}

}  // namespace
}  // namespace longcat_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CPU, m) {
  using namespace longcat_ops::bindings;
  add_cpu_kernel<"rms_norm", rms_norm_cpu>(m);
  add_cpu_kernel<"rms_norm_quant_fp8", rms_norm_quant_fp8_cpu>(m);
}
