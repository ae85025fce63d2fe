#include <torch/csrc/stable/library.h>

#include "bindings/device_launch.h"
#include "check/moe_check.h"

namespace longcat_ops::bindings {
namespace {

void moe_route_device(const Tensor& logits, const Tensor& bias, const std::optional<Tensor>& num_valid, int64_t top_k,
                      int64_t num_experts, int64_t num_zero_experts, double scale, const Tensor& ids,
                      const Tensor& weights, const Tensor& zero_weight, const Tensor& num_real, const Tensor& counts,
                      const Tensor& errors) {
  const TensorDesc logits_desc = describe_tensor(logits), ids_desc = describe_tensor(ids),
                   weights_desc = describe_tensor(weights), zero_desc = describe_tensor(zero_weight),
                   real_desc = describe_tensor(num_real), counts_desc = describe_tensor(counts),
                   errors_desc = describe_tensor(errors);
  const OptionalDesc valid_desc(num_valid);
  if (arguments_are_checked())
    check_moe_route(logits_desc, describe_tensor(bias), valid_desc.get(), {top_k, num_experts, num_zero_experts, scale},
                    {&ids_desc, &weights_desc, &zero_desc, &real_desc, &counts_desc, &errors_desc});
  const lc_matrix in = device_matrix(logits, logits_desc);
  const lc_moe_route_args args{sizeof args,
                               in,
                               const_data<float>(bias),
                               num_valid ? const_data<int32_t>(*num_valid) : nullptr,
                               static_cast<int32_t>(top_k),
                               static_cast<int32_t>(num_zero_experts),
                               scale,
                               data<int32_t>(ids),
                               data<float>(weights),
                               data<float>(zero_weight),
                               data<uint8_t>(num_real),
                               data<int32_t>(counts),
                               data<int32_t>(errors)};
  launch_on(logits_desc, &KernelLibrary::lc_moe_route, args);
}

void moe_plan_device(const Tensor& ids, int64_t num_local, const std::optional<Tensor>& weights, const Tensor& offsets,
                     const Tensor& row_of, const Tensor& src_of) {
  const TensorDesc ids_desc = describe_tensor(ids), offsets_desc = describe_tensor(offsets),
                   row_of_desc = describe_tensor(row_of), src_of_desc = describe_tensor(src_of);
  const OptionalDesc weights_desc(weights);
  if (arguments_are_checked())
    check_moe_plan(ids_desc, num_local, weights_desc.get(), &offsets_desc, &row_of_desc, &src_of_desc);
  const lc_moe_plan_args args{sizeof args,
                              const_data<int32_t>(ids),
                              ids_desc.sizes[0],
                              static_cast<int32_t>(ids_desc.sizes[1]),
                              static_cast<int32_t>(num_local),
                              weights ? const_data<float>(*weights) : nullptr,
                              data<int32_t>(offsets),
                              data<int32_t>(row_of),
                              data<int32_t>(src_of)};
  launch_on(ids_desc, &KernelLibrary::lc_moe_plan, args);
}

void moe_permute_quant_device(const Tensor& x, const Tensor& row_of, const Tensor& src_of, const Tensor& q,
                              const Tensor& s) {
  const TensorDesc x_desc = describe_tensor(x), row_of_desc = describe_tensor(row_of),
                   src_of_desc = describe_tensor(src_of), q_desc = describe_tensor(q), s_desc = describe_tensor(s);
  if (arguments_are_checked()) check_moe_permute_quant(x_desc, row_of_desc, src_of_desc, &q_desc, &s_desc);
  const lc_matrix in = device_matrix(x, x_desc), values = device_output(q, q_desc), scales = device_output(s, s_desc);
  const lc_moe_permute_quant_args args{sizeof args,
                                       in,
                                       const_data<int32_t>(row_of),
                                       static_cast<int32_t>(row_of_desc.sizes[1]),
                                       const_data<int32_t>(src_of),
                                       src_of_desc.sizes[0],
                                       values,
                                       scales};
  launch_on(x_desc, &KernelLibrary::lc_moe_permute_quant, args);
}

void moe_combine_device(const Tensor& y, const Tensor& row_of, const Tensor& weights, const Tensor& zero_weight,
                        const Tensor& x, const std::optional<Tensor>& add, const Tensor& out) {
  const TensorDesc y_desc = describe_tensor(y), row_of_desc = describe_tensor(row_of), x_desc = describe_tensor(x),
                   out_desc = describe_tensor(out);
  const OptionalDesc add_desc(add);
  if (arguments_are_checked())
    check_moe_combine(y_desc, row_of_desc, describe_tensor(weights), describe_tensor(zero_weight), x_desc,
                      add_desc.get(), &out_desc);
  const lc_matrix rows = device_matrix(y, y_desc), in = device_matrix(x, x_desc), sum = device_output(out, out_desc);
  const lc_matrix added = add ? device_matrix(*add, *add_desc.get()) : lc_matrix{};
  const lc_moe_combine_args args{sizeof args,
                                 rows,
                                 const_data<int32_t>(row_of),
                                 static_cast<int32_t>(row_of_desc.sizes[1]),
                                 const_data<float>(weights),
                                 const_data<float>(zero_weight),
                                 in,
                                 added,
                                 sum};
  launch_on(x_desc, &KernelLibrary::lc_moe_combine, args);
}

void register_moe(torch::stable::detail::StableLibrary& m) {
  m.impl("moe_route", TORCH_BOX(&moe_route_device));
  m.impl("moe_plan", TORCH_BOX(&moe_plan_device));
  m.impl("moe_permute_quant", TORCH_BOX(&moe_permute_quant_device));
  m.impl("moe_combine", TORCH_BOX(&moe_combine_device));
}

}  // namespace
}  // namespace longcat_ops::bindings

LC_REGISTER_DEVICE_KERNELS(register_moe)
