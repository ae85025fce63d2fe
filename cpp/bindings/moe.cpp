#include "cpu/moe.h"

#include <algorithm>
#include <vector>

#include "bindings/call.h"
#include "bindings/parallel.h"
#include "common/constants.h"
#include "common/numeric.h"

namespace longcat_ops::bindings {
namespace {

void moe_route_cpu(const Call& a) {
  const TensorDesc& logits = a.tensor("logits");
  const int64_t tokens = logits.sizes[0], experts = a.integer("num_experts");
  const auto* num_valid = a.data<int32_t>("num_valid");
  const cpu::RouteParams params{
      .dtype = logits.dtype,
      .logits = a.matrix("logits"),
      .bias = a.data<float>("bias"),
      .tokens = tokens,
      .experts = experts,
      .num_zero_experts = a.integer("num_zero_experts"),
      .top_k = a.integer("top_k"),
      .num_valid = num_valid ? *num_valid : tokens,
      .scale = static_cast<float>(a.number("scale")),
      .ids = a.output<int32_t>("ids"),
      .weights = a.output<float>("weights"),
      .zero_weight = a.output<float>("zero_weight"),
      .num_real = a.output<uint8_t>("num_real"),
      .counts = a.output<int32_t>("counts"),
      .errors = a.output<int32_t>("errors"),
  };
  std::fill_n(params.counts, experts, 0);
  parallel_over(tokens, 4 * experts, [&](int64_t begin, int64_t end) { cpu::moe_route(params, begin, end); });
}

void moe_place_cpu(const Call& a) {
  const TensorDesc &ids = a.tensor("ids"), &slots = a.tensor("slots");
  const cpu::PlaceParams params{
      .ids = a.data<int32_t>("ids"),
      .slots = a.data<int32_t>("slots"),
      .replicas = a.data<int32_t>("replicas"),
      .top_k = ids.sizes[1],
      .experts = slots.sizes[0],
      .max_replicas = slots.sizes[1],
      .layer = static_cast<uint32_t>(a.integer("layer")),
      .out = a.output<int32_t>("out"),
  };
  parallel_over(ids.sizes[0], params.top_k, [&](int64_t begin, int64_t end) { cpu::moe_place(params, begin, end); });
}

void moe_plan_cpu(const Call& a) {
  const TensorDesc& ids = a.tensor("ids");
  cpu::moe_plan({
      .ids = a.data<int32_t>("ids"),
      .weights = a.data<float>("weights"),
      .tokens = ids.sizes[0],
      .top_k = ids.sizes[1],
      .num_local = a.integer("num_local"),
      .rows = a.tensor("src_of").sizes[0],
      .offsets = a.output<int32_t>("offsets"),
      .row_of = a.output<int32_t>("row_of"),
      .src_of = a.output<int32_t>("src_of"),
  });
}

// Moves the rows of x, whatever they hold, to the rows of the argument `out`.
void permute(const Call& a, DType dtype, const cpu::Matrix& x, int64_t width, const char* out) {
  const cpu::PermuteParams params{
      .dtype = dtype,
      .x = x,
      .tokens = a.tensor("x").sizes[0],
      .top_k = a.tensor("row_of").sizes[1],
      .width = width,
      .src_of = a.data<int32_t>("src_of"),
      .out = a.matrix(out),
  };
  parallel_over(a.tensor("src_of").sizes[0], width,
                [&](int64_t begin, int64_t end) { cpu::moe_permute(params, begin, end); });
}

void moe_permute_cpu(const Call& a) {
  const TensorDesc& x = a.tensor("x");
  permute(a, x.dtype, a.matrix("x"), x.sizes[1], "out");
}

void moe_permute_quant_cpu(const Call& a) {
  const TensorDesc& x = a.tensor("x");
  const int64_t tokens = x.sizes[0], width = x.sizes[1], blocks = ceil_div(width, kQuantBlock);
  std::vector<uint8_t> values(tokens * width);  // each token quantised once
  std::vector<float> scales(tokens * blocks);
  const cpu::QuantParams quant{
      .x_dtype = x.dtype,
      .x = a.matrix("x"),
      .q = {values.data(), width, 1},
      .s = {scales.data(), blocks, 1},
      .rows = tokens,
      .columns = width,
      .block_rows = 1,
      .block_columns = kQuantBlock,
  };
  parallel_over(tokens, width, [&](int64_t begin, int64_t end) { cpu::quant_fp8(quant, begin, end); });
  permute(a, DType::kFloat8E4M3, quant.q, width, "q");
  permute(a, DType::kFloat32, quant.s, blocks, "s");
}

void moe_combine_cpu(const Call& a) {
  const TensorDesc &x = a.tensor("x"), &y = a.tensor("y");
  const cpu::CombineParams params{
      .y_dtype = y.dtype,
      .x_dtype = x.dtype,
      .y = a.matrix("y"),
      .x = a.matrix("x"),
      .add = a.matrix("add"),
      .out = a.matrix("out"),
      .rows = y.sizes[0],
      .width = x.sizes[1],
      .top_k = a.tensor("row_of").sizes[1],
      .row_of = a.data<int32_t>("row_of"),
      .weights = a.data<float>("weights"),
      .zero_weight = a.data<float>("zero_weight"),
  };
  parallel_over(x.sizes[0], params.width * params.top_k,
                [&](int64_t begin, int64_t end) { cpu::moe_combine(params, begin, end); });
}

}  // namespace
}  // namespace longcat_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CPU, m) {
  using namespace longcat_ops::bindings;
  add_cpu_kernel<"moe_route", moe_route_cpu>(m);
  add_cpu_kernel<"moe_place", moe_place_cpu>(m);
  add_cpu_kernel<"moe_plan", moe_plan_cpu>(m);
  add_cpu_kernel<"moe_permute", moe_permute_cpu>(m);
  add_cpu_kernel<"moe_permute_quant", moe_permute_quant_cpu>(m);
  add_cpu_kernel<"moe_combine", moe_combine_cpu>(m);
}
