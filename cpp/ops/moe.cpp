#include <algorithm>
#include <cmath>

#include "check/error.h"
#include "check/expert_weights.h"
#include "check/moe_checks.h"
#include "common/constants.h"
#include "common/numeric.h"
#include "moe_dispatch/config.h"
#include "moe_route/config.h"
#include "ops/table.h"

namespace longcat_ops {
namespace {

void check_moe_route(const Arguments& a) {
  static constexpr const char* kOp = "moe_route";
  const TensorDesc &logits = a.tensor("logits"), &bias = a.tensor("bias"), *num_valid = a.optional_tensor("num_valid");
  const int64_t k = a.integer("top_k"), num_experts = a.integer("num_experts");
  const int64_t num_zero_experts = a.integer("num_zero_experts");
  const double scale = a.number("scale");
  const TensorDesc *ids = a.optional_tensor("ids"), *weights = a.optional_tensor("weights");
  const TensorDesc *zero_weight = a.optional_tensor("zero_weight"), *num_real = a.optional_tensor("num_real");
  const TensorDesc *counts = a.optional_tensor("counts"), *errors = a.optional_tensor("errors");
  const Named like{"logits", &logits};
  check_lead(kOp, like, 2, "[T, E]");
  LC_CHECK(logits.dtype == DType::kFloat32 || logits.dtype == DType::kBFloat16, kOp, "logits", dtype_name(logits.dtype),
           "torch.float32 or torch.bfloat16", describe("logits", logits), "logits.float()");
  check_unit_inner_stride(kOp, "logits", logits);
  const int64_t tokens = logits.sizes[0], experts = logits.sizes[1];
  LC_CHECK(experts >= 1 && experts <= kMaxExperts, kOp, "logits", "of shape " + shape_text(logits),
           text("[T, E] with E in 1 .. ", kMaxExperts), "", "");
  LC_CHECK(num_experts == experts, kOp, "num_experts", std::to_string(num_experts),
           text(experts, ", the width of `logits`"), describe("logits", logits), "");
  LC_CHECK(num_zero_experts >= 0 && num_zero_experts <= experts, kOp, "num_zero_experts",
           std::to_string(num_zero_experts), text("0 .. ", experts), describe("logits", logits), "");
  LC_CHECK(k >= 1 && k <= std::min(experts, kMaxTopK), kOp, "top_k", std::to_string(k),
           text("1 .. ", std::min(experts, kMaxTopK)), describe("logits", logits), "");
  LC_CHECK(std::isfinite(scale), kOp, "scale", text(scale), "a finite number", "", "");
  check_dense(kOp, {"bias", &bias}, DType::kFloat32, {experts}, like);
  if (num_valid) check_dense(kOp, {"num_valid", num_valid}, DType::kInt32, {1}, like);
  if (ids) check_dense(kOp, {"ids", ids}, DType::kInt32, {tokens, k}, like);
  if (weights) check_dense(kOp, {"weights", weights}, DType::kFloat32, {tokens, k}, like);
  if (zero_weight) check_dense(kOp, {"zero_weight", zero_weight}, DType::kFloat32, {tokens}, like);
  if (num_real) check_dense(kOp, {"num_real", num_real}, DType::kUInt8, {tokens}, like);
  if (counts) check_dense(kOp, {"counts", counts}, DType::kInt32, {experts}, like);
  if (errors) check_dense(kOp, {"errors", errors}, DType::kInt32, {1}, like);
  check_no_alias(kOp, a);
}

void check_moe_place(const Arguments& a) {
  static constexpr const char* kOp = "moe_place";
  const TensorDesc &ids = a.tensor("ids"), &slots = a.tensor("slots"), &replicas = a.tensor("replicas");
  const TensorDesc* out = a.optional_tensor("out");
  const int64_t layer = a.integer("layer");
  const Named like{"ids", &ids};
  check_choices(kOp, ids);
  check_rank(kOp, "slots", slots, 2, "[N, M]");
  const int64_t experts = slots.sizes[0], max_replicas = slots.sizes[1];
  LC_CHECK(experts >= 1 && experts <= kMaxExperts && max_replicas >= 1 && max_replicas <= kMaxReplicas, kOp, "slots",
           "of shape " + shape_text(slots),
           text("[N, M] with N in 1 .. ", kMaxExperts, " and M in 1 .. ", kMaxReplicas), describe("slots", slots), "");
  check_dense(kOp, {"slots", &slots}, DType::kInt32, {experts, max_replicas}, like);
  check_dense(kOp, {"replicas", &replicas}, DType::kInt32, {experts}, like);
  LC_CHECK(layer >= 0 && layer <= INT32_MAX, kOp, "layer", std::to_string(layer), "0 .. 2^31 - 1", "", "");
  if (out) check_dense(kOp, {"out", out}, DType::kInt32, {ids.sizes[0], ids.sizes[1]}, like);
  check_no_alias(kOp, a);
}

void check_moe_plan(const Arguments& a) {
  static constexpr const char* kOp = "moe_plan";
  const TensorDesc &ids = a.tensor("ids"), *weights = a.optional_tensor("weights");
  const int64_t num_local = a.integer("num_local");
  const TensorDesc *offsets = a.optional_tensor("offsets"), *row_of = a.optional_tensor("row_of");
  const TensorDesc* src_of = a.optional_tensor("src_of");
  const Named like{"ids", &ids};
  check_choices(kOp, ids);
  const int64_t tokens = ids.sizes[0], k = ids.sizes[1];
  LC_CHECK(num_local >= 1 && num_local <= kMaxExperts, kOp, "num_local", std::to_string(num_local),
           text("1 .. ", kMaxExperts, " experts"), describe("ids", ids), "");
  if (weights) check_dense(kOp, {"weights", weights}, DType::kFloat32, {tokens, k}, like);
  if (offsets) check_dense(kOp, {"offsets", offsets}, DType::kInt32, {num_local + 1}, like);
  if (row_of) check_dense(kOp, {"row_of", row_of}, DType::kInt32, {tokens, k}, like);
  if (src_of) check_dense(kOp, {"src_of", src_of}, DType::kInt32, {tokens * std::min(k, num_local)}, like);
  check_no_alias(kOp, a);
}

// x, row_of and src_of of both permutes.
void check_permuted(const char* op, const Arguments& a) {
  const TensorDesc &x = a.tensor("x"), &row_of = a.tensor("row_of"), &src_of = a.tensor("src_of");
  const Named like{"x", &x};
  check_tokens(op, "x", x, "[T, H]");
  check_rank(op, "row_of", row_of, 2, "[T, K]");
  check_top_k(op, "row_of", row_of);
  check_dense(op, {"row_of", &row_of}, DType::kInt32, {x.sizes[0], row_of.sizes[1]}, like);
  check_rank(op, "src_of", src_of, 1, "[R]");
  LC_CHECK(src_of.sizes[0] <= x.sizes[0] * row_of.sizes[1], op, "src_of", "of shape " + shape_text(src_of),
           text("at most T * K = ", x.sizes[0] * row_of.sizes[1], " rows"), describe("row_of", row_of), "");
  check_dense(op, {"src_of", &src_of}, DType::kInt32, {src_of.sizes[0]}, like);
}

void check_moe_permute(const Arguments& a) {
  static constexpr const char* kOp = "moe_permute";
  const TensorDesc &x = a.tensor("x"), *out = a.optional_tensor("out");
  check_permuted(kOp, a);
  if (out) check_output_rows(kOp, {"out", out}, x.dtype, {a.tensor("src_of").sizes[0], x.sizes[1]}, {"x", &x});
  check_no_alias(kOp, a);
}

void check_moe_permute_quant(const Arguments& a) {
  static constexpr const char* kOp = "moe_permute_quant";
  const TensorDesc &x = a.tensor("x"), *q = a.optional_tensor("q"), *s = a.optional_tensor("s");
  const Named like{"x", &x};
  check_permuted(kOp, a);
  const int64_t rows = a.tensor("src_of").sizes[0], width = x.sizes[1];
  if (q) check_output_rows(kOp, {"q", q}, DType::kFloat8E4M3, {rows, width}, like);
  if (s) {
    check_operand(kOp, {"s", s}, DType::kFloat32, {rows, ceil_div(width, kQuantBlock)}, like);
    check_elements_apart(kOp, "s", *s);
  }
  check_no_alias(kOp, a);
}

void check_moe_combine(const Arguments& a) {
  static constexpr const char* kOp = "moe_combine";
  const TensorDesc &y = a.tensor("y"), &row_of = a.tensor("row_of"), &weights = a.tensor("weights");
  const TensorDesc &zero_weight = a.tensor("zero_weight"), &x = a.tensor("x");
  const TensorDesc *add = a.optional_tensor("add"), *out = a.optional_tensor("out");
  const Named like{"x", &x};
  check_tokens(kOp, "x", x, "[T, H]");
  const int64_t tokens = x.sizes[0], width = x.sizes[1];
  check_lead(kOp, {"y", &y}, 2, "[R, H]");
  check_floating(kOp, "y", y);
  check_operand(kOp, {"y", &y}, y.dtype, {y.sizes[0], width}, like);
  check_unit_inner_stride(kOp, "y", y);
  check_rank(kOp, "row_of", row_of, 2, "[T, K]");
  check_top_k(kOp, "row_of", row_of);
  check_dense(kOp, {"row_of", &row_of}, DType::kInt32, {tokens, row_of.sizes[1]}, like);
  check_dense(kOp, {"weights", &weights}, DType::kFloat32, {tokens, row_of.sizes[1]}, like);
  check_dense(kOp, {"zero_weight", &zero_weight}, DType::kFloat32, {tokens}, like);
  if (add) {
    check_operand(kOp, {"add", add}, x.dtype, {tokens, width}, like);
    check_unit_inner_stride(kOp, "add", *add);
  }
  if (out) check_output_rows(kOp, {"out", out}, x.dtype, {tokens, width}, like);
  check_no_alias(kOp, a);
}

void check_fused_moe(const Arguments& a) {
  static constexpr const char* kOp = "fused_moe";
  const TensorDesc &x = a.tensor("x"), &ids = a.tensor("ids"), &weights = a.tensor("weights");
  const TensorDesc &zero_weight = a.tensor("zero_weight"), *out = a.optional_tensor("out");
  // Each weight is a floating tensor without scales, or e4m3 with them.
  const TensorDesc &gate_up = a.tensor("w_gate_up"), *gate_up_scales = a.optional_tensor("gate_up_scales");
  const TensorDesc &down = a.tensor("w_down"), *down_scales = a.optional_tensor("down_scales");
  // A plan: all three or none.
  const TensorDesc *offsets = a.optional_tensor("offsets"), *row_of = a.optional_tensor("row_of");
  const TensorDesc* src_of = a.optional_tensor("src_of");
  const Named like{"x", &x};
  check_tokens(kOp, "x", x, "[T, H]");
  const int64_t tokens = x.sizes[0], hidden = x.sizes[1];
  check_rank(kOp, "ids", ids, 2, "[T, K]");
  check_top_k(kOp, "ids", ids);
  check_dense(kOp, {"ids", &ids}, DType::kInt32, {tokens, ids.sizes[1]}, like);
  check_dense(kOp, {"weights", &weights}, DType::kFloat32, {tokens, ids.sizes[1]}, like);
  check_dense(kOp, {"zero_weight", &zero_weight}, DType::kFloat32, {tokens}, like);
  check_expert_weight(kOp, "w_gate_up", "w_gate_up scales", gate_up, gate_up_scales, true, x);
  check_expert_weight(kOp, "w_down", "w_down scales", down, down_scales, false, x);
  const int64_t groups = gate_up.sizes[0], width = gate_up.sizes[1] / 2;
  LC_CHECK(gate_up.sizes[2] == hidden, kOp, "w_gate_up", "of shape " + shape_text(gate_up),
           text("[G, 2I, H] with H = ", hidden), describe("x", x), "");
  LC_CHECK(down.sizes[0] == groups && down.sizes[1] == hidden && down.sizes[2] == width, kOp, "w_down",
           "of shape " + shape_text(down), text("[", groups, ", ", hidden, ", ", width, "]"),
           describe("w_gate_up", gate_up), "");
  if (offsets || row_of || src_of) {
    LC_CHECK(offsets && row_of && src_of, kOp, "plan", "in part None", "offsets, row_of and src_of", "",
             "pass all that moe_plan returns, or None");
    const int64_t k = ids.sizes[1];
    check_dense(kOp, {"offsets", offsets}, DType::kInt32, {groups + 1}, like);
    check_dense(kOp, {"row_of", row_of}, DType::kInt32, {tokens, k}, like);
    check_dense(kOp, {"src_of", src_of}, DType::kInt32, {tokens * std::min(k, groups)}, like);
  }
  if (out) check_output_rows(kOp, {"out", out}, x.dtype, {tokens, hidden}, like);
  check_no_alias(kOp,
                 {like,
                  {"ids", &ids},
                  {"weights", &weights},
                  {"zero_weight", &zero_weight},
                  {"w_gate_up", &gate_up},
                  {"w_gate_up scales", gate_up_scales},
                  {"w_down", &down},
                  {"w_down scales", down_scales},
                  {"offsets", offsets},
                  {"row_of", row_of},
                  {"src_of", src_of}},
                 {"out", out});
}

std::vector<KernelShape> route_launches(const Arguments& a) {
  const TensorDesc& logits = a.tensor("logits");
  const MoeRouteConfig config = choose_moe_route_config(logits.sizes[0], logits.sizes[1]);
  std::vector<KernelShape> launches;
  if (config.clear) launches.push_back({"moe_route_clear", 1, kRouteMaxThreads, 0});
  launches.push_back({"moe_route", config.blocks, config.threads, 0});
  return launches;
}

std::vector<KernelShape> place_launches(const Arguments& a) {
  const int64_t blocks = choose_moe_place_blocks(num_elements(a.tensor("ids")));
  if (blocks == 0) return {};
  return {{"moe_place", blocks, kPlaceThreads, 0}};
}

std::vector<KernelShape> plan_launches(const Arguments& a) {
  const MoePlanConfig config = choose_moe_plan_config(num_elements(a.tensor("ids")), a.integer("num_local"));
  if (config.form != PlanForm::kLaunches) return {{"moe_plan_count", config.blocks, config.threads, config.count_smem}};
  return {{"moe_plan_count", config.blocks, config.threads, config.count_smem},
          {"moe_plan_rows", config.blocks, config.threads, config.rows_smem},
          {"moe_plan_sources", config.blocks, config.threads, 0}};
}

// chunk: elements of a row of x that a thread takes at a time.
std::vector<KernelShape> dispatch_launches(const char* op, const Arguments& a, int entry_bytes, int64_t chunk = 8) {
  const TensorDesc& x = a.tensor("x");
  const MoeDispatchConfig config = choose_moe_dispatch_config(x.sizes[0], x.sizes[1] / chunk, entry_bytes);
  if (config.blocks == 0) return {};
  return {{op, config.blocks, config.threads, config.smem}};
}

std::vector<KernelShape> permute_launches(const Arguments& a) {
  const int64_t chunk = 16 / element_size(a.tensor("x").dtype);  // the kernel moves 16 bytes of any dtype
  return dispatch_launches("moe_permute", a, kPermuteEntryBytes, chunk);
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
      // ids and out i32 [T, K], slots i32 [N, M], replicas i32 [N]
      {"moe_place(Tensor ids, Tensor slots, Tensor replicas, int layer, Tensor(a!) out) -> ()",
       check_moe_place,
       {.launches = place_launches}},
      // ids i32 [T, K], weights f32 [T, K] or none, offsets i32 [G + 1], row_of i32 [T, K], src_of i32 [R],
      // R = T * min(K, num_local)
      {"moe_plan(Tensor ids, int num_local, Tensor? weights, Tensor(a!) offsets, Tensor(b!) row_of, "
       "Tensor(c!) src_of) -> ()",
       check_moe_plan,
       {.launches = plan_launches}},
      // x [T, H], out [R, H] of x's dtype
      {"moe_permute(Tensor x, Tensor row_of, Tensor src_of, Tensor(a!) out) -> ()",
       check_moe_permute,
       {.assumes = "every choice has a row", .launches = permute_launches}},
      // x [T, H], q e4m3 [R, H], s f32 [R, ceil(H / 128)]
      {"moe_permute_quant(Tensor x, Tensor row_of, Tensor src_of, Tensor(a!) q, Tensor(b!) s) -> ()",
       check_moe_permute_quant,
       {.assumes = "every choice has a row",
        .launches = [](const Arguments& a) { return dispatch_launches("moe_permute_quant", a, kPermuteEntryBytes); }}},
      // y [R, H], x, add and out [T, H]
      {"moe_combine(Tensor y, Tensor row_of, Tensor weights, Tensor zero_weight, Tensor x, Tensor? add, "
       "Tensor(a!) out) -> ()",
       check_moe_combine,
       {.assumes = "every row of y is used",
        .launches = [](const Arguments& a) { return dispatch_launches("moe_combine", a, kCombineEntryBytes); }}},
      // w_gate_up [G, 2I, H], interleaved, w_down [G, H, I]; scales only with e4m3 weights; the last three inputs are a
      // plan
      {"fused_moe(Tensor x, Tensor ids, Tensor weights, Tensor zero_weight, Tensor w_gate_up, "
       "Tensor? gate_up_scales, Tensor w_down, Tensor? down_scales, Tensor? offsets, Tensor? row_of, Tensor? src_of, "
       "Tensor(a!) out) -> ()",
       check_fused_moe,
       {.flops = expert_flops, .assumes = "every choice is an FFN expert and every expert is chosen"}},
  };
}

}  // namespace longcat_ops
