#include "cost/explain.h"

#include <algorithm>
#include <map>
#include <stdexcept>

#include "check/error.h"
#include "moe_dispatch/config.h"
#include "moe_route/config.h"

namespace longcat_ops {
namespace {

using Arguments = std::vector<Argument>;

const TensorDesc& tensor(const Arguments& arguments, size_t index) { return std::get<TensorDesc>(arguments.at(index)); }

// 2 * rows * N * K for rows of `a` times a weight whose last two sizes are [N, K].
double product_flops(int64_t rows, const TensorDesc& weight) {
  return 2.0 * rows * weight.sizes[weight.dim - 2] * weight.sizes[weight.dim - 1];
}

struct OpCost {
  size_t first_output;
  double (*flops)(const Arguments&) = nullptr;
  const char* assumes = "";
  std::vector<KernelShape> (*launches)(const Arguments&) = nullptr;
};

constexpr const char* kEveryExpert = "every row is used and every expert has one";

std::vector<KernelShape> route_launches(const Arguments& a) {
  const TensorDesc& logits = tensor(a, 0);
  const MoeRouteConfig config = choose_moe_route_config(logits.sizes[0], logits.sizes[1]);
  std::vector<KernelShape> launches;
  if (config.clear) launches.push_back({"moe_route_clear", 1, kRouteMaxThreads, 0});
  launches.push_back({"moe_route", config.blocks, config.threads, 0});
  return launches;
}

std::vector<KernelShape> plan_launches(const Arguments& a) {
  const MoePlanConfig config = choose_moe_plan_config(num_elements(tensor(a, 0)), std::get<int64_t>(a.at(1)));
  if (config.blocks == 1) return {{"moe_plan_count", 1, config.threads, config.count_smem}};
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
  return dispatch_launches("moe_permute_quant", tensor(a, 0), kPermuteEntryBytes);
}

std::vector<KernelShape> combine_launches(const Arguments& a) {
  return dispatch_launches("moe_combine", tensor(a, 4), kCombineEntryBytes);
}

const std::map<std::string, OpCost>& costs() {
  static const std::map<std::string, OpCost> table = {
      {"per_token_group_quant_fp8", {2}},
      {"per_block_quant_fp8", {1}},
      {"silu_and_mul_quant_fp8", {1}},
      {"dequant_fp8", {3}},
      {"rms_norm", {3}},
      {"rms_norm_quant_fp8", {4}},
      {"fp8_gemm_nt", {5, [](const Arguments& a) { return product_flops(tensor(a, 0).sizes[0], tensor(a, 2)); }}},
      {"m_grouped_fp8_gemm_nt_offset",
       {8, [](const Arguments& a) { return product_flops(tensor(a, 0).sizes[0], tensor(a, 2)); }, kEveryExpert}},
      {"m_grouped_fp8_gemm_nt_masked",
       {6,
        [](const Arguments& a) {
          const TensorDesc& x = tensor(a, 0);
          return product_flops(x.sizes[0] * x.sizes[1], tensor(a, 2));
        },
        kEveryExpert}},
      {"m_grouped_fp8_gemm_nt_contiguous",
       {5, [](const Arguments& a) { return product_flops(tensor(a, 0).sizes[0], tensor(a, 2)); }, kEveryExpert}},
      {"interleave_gate_up", {2}},
      {"m_grouped_fp8_swiglu_gemm_nt_offset",
       {7, [](const Arguments& a) { return product_flops(tensor(a, 0).sizes[0], tensor(a, 2)); }, kEveryExpert}},
      {"moe_route", {7, nullptr, "", route_launches}},
      {"moe_plan", {3, nullptr, "", plan_launches}},
      {"moe_permute_quant", {3, nullptr, "every choice has a row", permute_quant_launches}},
      {"moe_combine", {6, nullptr, "every row of y is used", combine_launches}},
      {"fused_moe",
       {11,
        [](const Arguments& a) {
          const int64_t rows = tensor(a, 1).sizes[0] * std::min(tensor(a, 1).sizes[1], tensor(a, 4).sizes[0]);
          return product_flops(rows, tensor(a, 4)) + product_flops(rows, tensor(a, 6));
        },
        "every choice is an FFN expert and every expert is chosen"}},
  };
  return table;
}

int64_t bytes(const Argument& argument) {
  const TensorDesc* desc = std::get_if<TensorDesc>(&argument);
  return desc ? num_elements(*desc) * element_size(desc->dtype) : 0;
}

}  // namespace

Explanation explain(const std::string& op, const std::vector<Argument>& arguments) {
  const auto found = costs().find(op);
  if (found == costs().end()) throw std::invalid_argument("explain: there is no op " + op);
  const OpCost& cost = found->second;
  Explanation out;
  for (size_t i = 0; i < arguments.size(); ++i)
    (i < cost.first_output ? out.bytes_read : out.bytes_written) += bytes(arguments[i]);
  out.flops = cost.flops ? cost.flops(arguments) : 0;
  out.assumes = cost.assumes;
  if (cost.launches) out.launches = cost.launches(arguments);
  if (op.find("gemm_nt") != std::string::npos) out.candidates = moe_gemm_candidates(moe_gemm_problem(op, arguments));
  return out;
}

}  // namespace longcat_ops
