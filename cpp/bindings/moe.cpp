#include "cpu/moe.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "bindings/parallel.h"
#include "bindings/tensor_args.h"
#include "check/moe_check.h"
#include "check/tensor_checks.h"
#include "common/numeric.h"

namespace longcat_ops::bindings {
namespace {
void moe_route_cpu(const Tensor& logits, const Tensor& bias, const std::optional<Tensor>& num_valid, int64_t top_k,
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
  const int64_t tokens = logits_desc.sizes[0];
  std::fill_n(data<int32_t>(counts), num_experts, 0);
  const cpu::RouteParams params{
      .dtype = logits_desc.dtype,
      .logits = matrix_view(logits.const_data_ptr(), logits_desc),
      .bias = const_data<float>(bias),
      .tokens = tokens,
      .experts = num_experts,
      .num_zero_experts = num_zero_experts,
      .top_k = top_k,
      .num_valid = num_valid ? *const_data<int32_t>(*num_valid) : tokens,
      .scale = static_cast<float>(scale),
      .ids = data<int32_t>(ids),
      .weights = data<float>(weights),
      .zero_weight = data<float>(zero_weight),
      .num_real = data<uint8_t>(num_real),
      .counts = data<int32_t>(counts),
      .errors = data<int32_t>(errors),
  };
  parallel_over(tokens, 4 * num_experts, [&](int64_t begin, int64_t end) { cpu::moe_route(params, begin, end); });
}

void moe_plan_cpu(const Tensor& ids, int64_t num_local, const std::optional<Tensor>& weights, const Tensor& offsets,
                  const Tensor& row_of, const Tensor& src_of) {
  const TensorDesc ids_desc = describe_tensor(ids), offsets_desc = describe_tensor(offsets),
                   row_of_desc = describe_tensor(row_of), src_of_desc = describe_tensor(src_of);
  const OptionalDesc weights_desc(weights);
  check_moe_plan(ids_desc, num_local, weights_desc.get(), &offsets_desc, &row_of_desc, &src_of_desc);
  cpu::moe_plan({
      .ids = const_data<int32_t>(ids),
      .weights = weights ? const_data<float>(*weights) : nullptr,
      .tokens = ids_desc.sizes[0],
      .top_k = ids_desc.sizes[1],
      .num_local = num_local,
      .rows = src_of_desc.sizes[0],
      .offsets = data<int32_t>(offsets),
      .row_of = data<int32_t>(row_of),
      .src_of = data<int32_t>(src_of),
  });
}

void moe_permute_quant_cpu(const Tensor& x, const Tensor& row_of, const Tensor& src_of, const Tensor& q,
                           const Tensor& s) {
  const TensorDesc x_desc = describe_tensor(x), row_of_desc = describe_tensor(row_of),
                   src_of_desc = describe_tensor(src_of), q_desc = describe_tensor(q), s_desc = describe_tensor(s);
  check_moe_permute_quant(x_desc, row_of_desc, src_of_desc, &q_desc, &s_desc);
  const int64_t tokens = x_desc.sizes[0], width = x_desc.sizes[1], blocks = ceil_div(width, kQuantBlock);
  std::vector<uint8_t> values(tokens * width);  // each token quantised once
  std::vector<float> scales(tokens * blocks);
  const cpu::QuantParams quant{
      .x_dtype = x_desc.dtype,
      .x = matrix_view(x.const_data_ptr(), x_desc),
      .q = {values.data(), width, 1},
      .s = {scales.data(), blocks, 1},
      .rows = tokens,
      .columns = width,
      .block_rows = 1,
      .block_columns = kQuantBlock,
  };
  parallel_over(tokens, width, [&](int64_t begin, int64_t end) { cpu::quant_fp8(quant, begin, end); });
  const cpu::PermuteParams permute{
      .q = quant.q,
      .s = quant.s,
      .tokens = tokens,
      .top_k = row_of_desc.sizes[1],
      .width = width,
      .blocks = blocks,
      .src_of = const_data<int32_t>(src_of),
      .q_out = matrix_view(q.mutable_data_ptr(), q_desc),
      .s_out = matrix_view(s.mutable_data_ptr(), s_desc),
  };
  parallel_over(src_of_desc.sizes[0], width,
                [&](int64_t begin, int64_t end) { cpu::moe_permute(permute, begin, end); });
}

void moe_combine_cpu(const Tensor& y, const Tensor& row_of, const Tensor& weights, const Tensor& zero_weight,
                     const Tensor& x, const std::optional<Tensor>& add, const Tensor& out) {
  const TensorDesc y_desc = describe_tensor(y), row_of_desc = describe_tensor(row_of), x_desc = describe_tensor(x),
                   out_desc = describe_tensor(out);
  const OptionalDesc add_desc(add);
  check_moe_combine(y_desc, row_of_desc, describe_tensor(weights), describe_tensor(zero_weight), x_desc, add_desc.get(),
                    &out_desc);
  const cpu::CombineParams params{
      .y_dtype = y_desc.dtype,
      .x_dtype = x_desc.dtype,
      .y = matrix_view(y.const_data_ptr(), y_desc),
      .x = matrix_view(x.const_data_ptr(), x_desc),
      .add = add ? matrix_view(add->const_data_ptr(), *add_desc.get()) : cpu::Matrix{},
      .out = matrix_view(out.mutable_data_ptr(), out_desc),
      .rows = y_desc.sizes[0],
      .width = x_desc.sizes[1],
      .top_k = row_of_desc.sizes[1],
      .row_of = const_data<int32_t>(row_of),
      .weights = const_data<float>(weights),
      .zero_weight = const_data<float>(zero_weight),
  };
  parallel_over(x_desc.sizes[0], params.width * params.top_k,
                [&](int64_t begin, int64_t end) { cpu::moe_combine(params, begin, end); });
}

}  // namespace
}  // namespace longcat_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CPU, m) {
  using namespace longcat_ops::bindings;
  m.impl("moe_route", TORCH_BOX(&moe_route_cpu));
  m.impl("moe_plan", TORCH_BOX(&moe_plan_cpu));
  m.impl("moe_permute_quant", TORCH_BOX(&moe_permute_quant_cpu));
  m.impl("moe_combine", TORCH_BOX(&moe_combine_cpu));
}
