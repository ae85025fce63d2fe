#include <torch/csrc/stable/library.h>

#include "bindings/parallel.h"
#include "bindings/tensor_args.h"
#include "check/norm_check.h"
#include "check/tensor_checks.h"
#include "common/numeric.h"
#include "cpu/norm.h"

namespace longcat_ops::bindings {
namespace {

void rms_norm_cpu(const Tensor& x, const Tensor& weight, double eps, const Tensor& y) {
  const TensorDesc x_desc = describe_tensor(x), y_desc = describe_tensor(y);
  check_rms_norm(x_desc, describe_tensor(weight), eps, &y_desc);
  const cpu::RmsNormParams params{
      .dtype = x_desc.dtype,
      .x = matrix_view(x.const_data_ptr(), x_desc),
      .y = matrix_view(y.mutable_data_ptr(), y_desc),
      .weight = static_cast<const float*>(weight.const_data_ptr()),
      .columns = x_desc.sizes[1],
      .eps = static_cast<float>(eps),
  };
  parallel_over(x_desc.sizes[0], params.columns,
                [&](int64_t begin, int64_t end) { cpu::rms_norm(params, begin, end); });
}

void rms_norm_quant_fp8_cpu(const Tensor& x, const Tensor& weight, double eps, const std::optional<Tensor>& residual,
                            const Tensor& q, const Tensor& s, const Tensor& y,
                            const std::optional<Tensor>& residual_out) {
  const TensorDesc x_desc = describe_tensor(x), q_desc = describe_tensor(q), s_desc = describe_tensor(s),
                   y_desc = describe_tensor(y);
  const OptionalDesc residual_desc(residual), residual_out_desc(residual_out);
  check_rms_norm_quant_fp8(x_desc, describe_tensor(weight), eps, residual_desc.get(), &q_desc, &s_desc, &y_desc,
                           residual_out_desc.get());
  const int64_t columns = x_desc.sizes[1];
  const cpu::Matrix rows = matrix_view(x.const_data_ptr(), x_desc);
  cpu::AddParams add{.dtype = x_desc.dtype, .a = rows, .b = {}, .out = rows, .columns = columns};
  if (residual) {
    add.b = matrix_view(residual->const_data_ptr(), *residual_desc.get());
    add.out = matrix_view(residual_out->mutable_data_ptr(), *residual_out_desc.get());
  }
  const cpu::RmsNormParams norm{
      .dtype = x_desc.dtype,
      .x = add.out,  // without a residual, x itself
      .y = matrix_view(y.mutable_data_ptr(), y_desc),
      .weight = static_cast<const float*>(weight.const_data_ptr()),
      .columns = columns,
      .eps = static_cast<float>(eps),
  };
  const cpu::QuantParams quant{
      .x_dtype = x_desc.dtype,
      .x = norm.y,
      .q = matrix_view(q.mutable_data_ptr(), q_desc),
      .s = matrix_view(s.mutable_data_ptr(), s_desc),
      .rows = x_desc.sizes[0],
      .columns = columns,
      .block_rows = 1,
      .block_columns = kQuantBlock,
  };
  parallel_over(x_desc.sizes[0], columns, [&](int64_t begin, int64_t end) {
    if (residual) cpu::add(add, begin, end);
    cpu::rms_norm(norm, begin, end);
    cpu::quant_fp8(quant, begin, end);
  });
}

}  // namespace
}  // namespace longcat_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CPU, m) {
  using namespace longcat_ops::bindings;
  m.impl("rms_norm", TORCH_BOX(&rms_norm_cpu));
  m.impl("rms_norm_quant_fp8", TORCH_BOX(&rms_norm_quant_fp8_cpu));
}
