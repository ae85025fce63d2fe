#include <algorithm>

#include "check/moe_check.h"
#include "moe_dispatch/config.h"
#include "moe_route/config.h"
#include "ops/table.h"

namespace longcat_ops {
namespace {

std::vector<KernelShape> route_launches(const Arguments& a) {
  const TensorDesc& logits = a.tensor("logits");
  const MoeRouteConfig config = choose_moe_route_config(logits.sizes[0], logits.sizes[1]);
  std::vector<KernelShape> launches;
  if (config.clear) launches.push_back({"moe_route_clear", 1, kRouteMaxThreads, 0});
  launches.push_back({"moe_route", config.blocks, config.threads, 0});
  return launches;
}

std::vector<KernelShape> plan_launches(const Arguments& a) {
  const MoePlanConfig config = choose_moe_plan_config(num_elements(a.tensor("ids")), a.integer("num_local"));
  if (config.form != PlanForm::kLaunches) return {{"moe_plan_count", config.blocks, config.threads, config.count_smem}};
  return {{"moe_plan_count", config.blocks, config.threads, config.count_smem},
          {"moe_plan_rows", config.blocks, config.threads, config.rows_smem},
          {"moe_plan_sources", config.blocks, config.threads, 0}};
}

std::vector<KernelShape> dispatch_launches(const char* op, const TensorDesc& x, int entry_bytes) {
  const MoeDispatchConfig config = choose_moe_dispatch_config(x.sizes[0], x.sizes[1] / 8, entry_bytes);
  if (config.blocks == 0) return {};
  return {{op, config.blocks, config.threads, config.smem}};
}

std::vector<KernelShape> permute_quant_launches(const Arguments& a) {
  return dispatch_launches("moe_permute_quant", a.tensor("x"), kPermuteEntryBytes);
}

std::vector<KernelShape> combine_launches(const Arguments& a) {
  return dispatch_launches("moe_combine", a.tensor("x"), kCombineEntryBytes);
}

double expert_flops(const Arguments& a) {
  const TensorDesc &ids = a.tensor("ids"), &gate_up = a.tensor("w_gate_up");
  const int64_t rows = ids.sizes[0] * std::min(ids.sizes[1], gate_up.sizes[0]);
  return product_flops(rows, gate_up) + product_flops(rows, a.tensor("w_down"));
}

}  // namespace

std::vector<OpRow> moe_ops() {
  return {
      // logits [T, E], bias f32 [E], num_valid i32 [1], ids i32 and weights f32 [T, K], zero_weight f32 and num_real u8
      // [T], counts i32 [E], errors i32 [1]
      {"moe_route(Tensor logits, Tensor bias, Tensor? num_valid, int top_k, int num_experts, int num_zero_experts, "
       "float scale, Tensor(a!) ids, Tensor(b!) weights, Tensor(c!) zero_weight, Tensor(d!) num_real, "
       "Tensor(e!) counts, Tensor(f!) errors) -> ()",
       check_moe_route,
       {.launches = route_launches}},
      // ids i32 [T, K], weights f32 [T, K] or none, offsets i32 [G + 1], row_of i32 [T, K], src_of i32 [R],
      // R = T * min(K, num_local)
      {"moe_plan(Tensor ids, int num_local, Tensor? weights, Tensor(a!) offsets, Tensor(b!) row_of, "
       "Tensor(c!) src_of) -> ()",
       check_moe_plan,
       {.launches = plan_launches}},
      // x [T, H], q e4m3 [R, H], s f32 [R, ceil(H / 128)]
      {"moe_permute_quant(Tensor x, Tensor row_of, Tensor src_of, Tensor(a!) q, Tensor(b!) s) -> ()",
       check_moe_permute_quant,
       {.assumes = "every choice has a row", .launches = permute_quant_launches}},
      // y [R, H], x, add and out [T, H]
      {"moe_combine(Tensor y, Tensor row_of, Tensor weights, Tensor zero_weight, Tensor x, Tensor? add, "
       "Tensor(a!) out) -> ()",
       check_moe_combine,
       {.assumes = "every row of y is used", .launches = combine_launches}},
      // w_gate_up [G, 2I, H], w_down [G, H, I]; scales only with e4m3 weights, gate_up then interleaved; the last three
      // inputs are a plan
      {"fused_moe(Tensor x, Tensor ids, Tensor weights, Tensor zero_weight, Tensor w_gate_up, "
       "Tensor? gate_up_scales, Tensor w_down, Tensor? down_scales, Tensor? offsets, Tensor? row_of, Tensor? src_of, "
       "Tensor(a!) out) -> ()",
       check_fused_moe,
       {.flops = expert_flops, .assumes = "every choice is an FFN expert and every expert is chosen"}},
  };
}

}  // namespace longcat_ops
