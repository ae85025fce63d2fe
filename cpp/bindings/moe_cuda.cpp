#include "bindings/cuda_launch.h"
#include "bindings/ops.h"
#include "config/moe_check.h"

namespace longcat_ops::bindings {

void moe_route_cuda(const Tensor& logits, const Tensor& bias, const std::optional<Tensor>& num_valid, int64_t top_k,
                    int64_t num_experts, int64_t num_zero_experts, double scale, const Tensor& ids,
                    const Tensor& weights, const Tensor& zero_weight, const Tensor& num_real, const Tensor& counts,
                    const Tensor& errors) {
  const TensorDesc logits_desc = describe_tensor(logits), ids_desc = describe_tensor(ids),
                   weights_desc = describe_tensor(weights), zero_desc = describe_tensor(zero_weight),
                   real_desc = describe_tensor(num_real), counts_desc = describe_tensor(counts),
                   errors_desc = describe_tensor(errors);
  const OptionalDesc valid_desc(num_valid);
  check_moe_route(logits_desc, describe_tensor(bias), valid_desc.get(), {top_k, num_experts, num_zero_experts, scale},
                  {&ids_desc, &weights_desc, &zero_desc, &real_desc, &counts_desc, &errors_desc});
  const lc_matrix in = cuda_matrix(logits, logits_desc);
  launch_on(logits_desc.device_index, [&](lc_stream_t stream) {
    return lc_moe_route(&in, const_data<float>(bias), num_valid ? const_data<int32_t>(*num_valid) : nullptr,
                        static_cast<int32_t>(top_k), static_cast<int32_t>(num_zero_experts), scale, data<int32_t>(ids),
                        data<float>(weights), data<float>(zero_weight), data<uint8_t>(num_real), data<int32_t>(counts),
                        data<int32_t>(errors), stream);
  });
}

void moe_plan_cuda(const Tensor& ids, int64_t num_local, const Tensor& offsets, const Tensor& row_of,
                   const Tensor& src_of) {
  const TensorDesc ids_desc = describe_tensor(ids), offsets_desc = describe_tensor(offsets),
                   row_of_desc = describe_tensor(row_of), src_of_desc = describe_tensor(src_of);
  check_moe_plan(ids_desc, num_local, &offsets_desc, &row_of_desc, &src_of_desc);
  launch_on(ids_desc.device_index, [&](lc_stream_t stream) {
    return lc_moe_plan(const_data<int32_t>(ids), ids_desc.sizes[0], static_cast<int32_t>(ids_desc.sizes[1]),
                       static_cast<int32_t>(num_local), data<int32_t>(offsets), data<int32_t>(row_of),
                       data<int32_t>(src_of), stream);
  });
}

}  // namespace longcat_ops::bindings
