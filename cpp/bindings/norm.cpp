#include "config/norm_check.h"

#include "bindings/ops.h"
#include "bindings/parallel.h"
#include "bindings/tensor_args.h"
#include "cpu/norm.h"

namespace longcat_ops::bindings {

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

}  // namespace longcat_ops::bindings
