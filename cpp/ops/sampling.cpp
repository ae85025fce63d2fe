#include <cmath>
#include <limits>

#include "check/error.h"
#include "check/tensor_checks.h"
#include "ops/table.h"
#include "sampling/config.h"

namespace longcat_ops {
namespace {

constexpr int64_t kMostTokens = std::numeric_limits<int32_t>::max();  // V of a row

void check_f32_logits(const char* op, Named logits, int rank, const char* layout) {
  check_lead(op, logits, rank, layout);
  const TensorDesc& tensor = *logits.tensor;
  check_dtype(op, logits.name, tensor, DType::kFloat32);
  for (int i = 1; i < rank; ++i)
    LC_CHECK(tensor.sizes[i] >= 1 && tensor.sizes[i] <= kMostTokens, op, logits.name, "of shape " + shape_text(tensor),
             text(layout, " with ", rank == 3 ? "q and V" : "V", " 1 .. ", kMostTokens), describe(logits.name, tensor),
             "");
}

// An input [B] or an output of one number for each sequence, contiguous.
void check_per_sequence(const char* op, const Arguments& a, const char* name, DType dtype, Named lead) {
  const TensorDesc& tensor = a.tensor(name);
  check_operand(op, {name, &tensor}, dtype, {lead.tensor->sizes[0]}, lead);
  check_contiguous(op, name, tensor);
}

void check_draws(const char* op, const Arguments& a, Named lead) {
  check_per_sequence(op, a, "seeds", DType::kInt64, lead);
  check_per_sequence(op, a, "lengths", DType::kInt32, lead);
  check_per_sequence(op, a, "temperature", DType::kFloat32, lead);
  check_per_sequence(op, a, "top_k", DType::kInt32, lead);
  check_per_sequence(op, a, "top_p", DType::kFloat32, lead);
}

// What both ops that verify drafts take.
Named check_verified(const char* op, const Arguments& a) {
  const TensorDesc &logits = a.tensor("logits"), &drafts = a.tensor("drafts");
  const Named lead{"logits", &logits};
  check_f32_logits(op, lead, 3, "[B, q, V]");
  check_contiguous(op, "logits", logits);
  check_operand(op, {"drafts", &drafts}, DType::kInt64, {logits.sizes[0], logits.sizes[1] - 1}, lead);
  check_unit_inner_stride(op, "drafts", drafts);
  check_per_sequence(op, a, "num_drafts", DType::kInt32, lead);
  if (a.optional_tensor("first_row")) check_per_sequence(op, a, "first_row", DType::kInt32, lead);
  return lead;
}

void check_verified_outputs(const char* op, const Arguments& a, Named lead) {
  const TensorDesc &logits = *lead.tensor, *tokens = a.optional_tensor("tokens");
  if (tokens) check_output_rows(op, {"tokens", tokens}, DType::kInt64, {logits.sizes[0], logits.sizes[1]}, lead);
  if (a.optional_tensor("num_tokens")) check_per_sequence(op, a, "num_tokens", DType::kInt32, lead);
  check_no_alias(op, a);
}

void check_verify_greedy(const Arguments& a) {
  static constexpr const char* kOp = "verify_greedy";
  check_verified_outputs(kOp, a, check_verified(kOp, a));
}

void check_verify_sampled(const Arguments& a) {
  static constexpr const char* kOp = "verify_sampled";
  const Named lead = check_verified(kOp, a);
  check_draws(kOp, a, lead);
  if (const TensorDesc* probs = a.optional_tensor("draft_probs")) {
    const auto& sizes = lead.tensor->sizes;
    check_operand(kOp, {"draft_probs", probs}, DType::kFloat32, {sizes[0], sizes[1] - 1, sizes[2]}, lead);
    check_unit_inner_stride(kOp, "draft_probs", *probs);
  }
  check_verified_outputs(kOp, a, lead);
}

void check_sample_tokens(const Arguments& a) {
  static constexpr const char* kOp = "sample_tokens";
  const TensorDesc &logits = a.tensor("logits"), *tokens = a.optional_tensor("tokens"),
                   *probs = a.optional_tensor("probs");
  const Named lead{"logits", &logits};
  check_f32_logits(kOp, lead, 2, "[B, V]");
  check_unit_inner_stride(kOp, "logits", logits);
  check_draws(kOp, a, lead);
  if (tokens) {
    check_operand(kOp, {"tokens", tokens}, DType::kInt64, {logits.sizes[0]}, lead);
    check_elements_apart(kOp, "tokens", *tokens);
  }
  if (probs) check_output_rows(kOp, {"probs", probs}, DType::kFloat32, {logits.sizes[0], logits.sizes[1]}, lead);
  check_no_alias(kOp, a);
}

void check_filter_drafts(const Arguments& a) {
  static constexpr const char* kOp = "filter_drafts";
  const TensorDesc &logits = a.tensor("logits"), &hidden = a.tensor("hidden"), &output = a.tensor("output");
  const Named lead{"logits", &logits};
  check_f32_logits(kOp, lead, 2, "[B, V]");
  check_unit_inner_stride(kOp, "logits", logits);
  check_rank(kOp, "hidden", hidden, 2, "[H, 4]");
  const int64_t units = hidden.sizes[0];
  LC_CHECK(units >= 1 && units <= kMaxHiddenUnits && hidden.sizes[1] == 4, kOp, "hidden",
           "of shape " + shape_text(hidden), text("[H, 4] with H 1 .. ", kMaxHiddenUnits), describe("hidden", hidden),
           "");
  check_operand(kOp, {"hidden", &hidden}, DType::kFloat32, {units, 4}, lead);
  check_contiguous(kOp, "hidden", hidden);
  check_operand(kOp, {"output", &output}, DType::kFloat32, {units + 1}, lead);
  check_contiguous(kOp, "output", output);
  if (a.optional_tensor("joint_before")) check_per_sequence(kOp, a, "joint_before", DType::kFloat32, lead);
  const int64_t depth = a.integer("depth"), top = a.integer("top");
  const double beta = a.number("beta");
  LC_CHECK(depth >= 1 && depth <= kMostTokens, kOp, "depth", text(depth), text("1 .. ", kMostTokens), "", "");
  LC_CHECK(std::abs(beta) <= std::numeric_limits<float>::max(), kOp, "beta", text(beta), "a finite float32", "", "");
  LC_CHECK(top >= 1, kOp, "top", text(top), "at least 1", "", "");
  check_per_sequence(kOp, a, "num_drafts", DType::kInt32, lead);
  for (const char* name : {"joint", "entropy", "score"})
    if (a.optional_tensor(name)) check_per_sequence(kOp, a, name, DType::kFloat32, lead);
  check_no_alias(kOp, a);
}

// num_drafts is read before it is written.
int64_t filter_bytes_read(const Arguments& a) {
  int64_t bytes = 0;
  for (const char* name : {"logits", "hidden", "output", "num_drafts"}) bytes += bytes_of(a.tensor(name));
  const TensorDesc* before = a.optional_tensor("joint_before");
  return bytes + (before ? bytes_of(*before) : 0);
}

std::vector<KernelShape> greedy_launches(const Arguments& a) {
  const TensorDesc& logits = a.tensor("logits");
  const SamplingConfig config = choose_verify_greedy_config(logits.sizes[0], logits.sizes[2]);
  if (config.blocks == 0) return {};
  return {{"verify_greedy", config.blocks, config.threads, kGreedySmemBytes}};
}

// Of an op whose rows of logits have their width as size number `last`.
std::vector<KernelShape> sampled_launches(const char* kernel, const Arguments& a, int last) {
  const TensorDesc& logits = a.tensor("logits");
  const SamplingConfig config = choose_sampled_config(logits.sizes[0], logits.sizes[last]);
  if (config.blocks == 0) return {};
  return {{kernel, config.blocks, config.threads, kSampledSmemBytes}};
}

constexpr const char* kAccepted = "every sequence has all its drafts, and every one is accepted";

}  // namespace

std::vector<OpRow> sampling_ops() {
  return {
      // logits f32 [B, q, V], drafts i64 [B, q - 1], num_drafts and first_row i32 [B], tokens i64 [B, q],
      // num_tokens i32 [B]
      {"verify_greedy(Tensor logits, Tensor drafts, Tensor num_drafts, Tensor? first_row, Tensor(a!) tokens, "
       "Tensor(b!) num_tokens) -> ()",
       check_verify_greedy,
       {.assumes = kAccepted, .launches = greedy_launches}},
      // and seeds i64 [B], lengths i32 [B], temperature f32 [B], top_k i32 [B], top_p f32 [B],
      // draft_probs f32 [B, q - 1, V]
      {"verify_sampled(Tensor logits, Tensor drafts, Tensor num_drafts, Tensor seeds, Tensor lengths, "
       "Tensor temperature, Tensor top_k, Tensor top_p, Tensor? draft_probs, Tensor? first_row, Tensor(a!) tokens, "
       "Tensor(b!) num_tokens) -> ()",
       check_verify_sampled,
       {.assumes = kAccepted, .launches = [](const Arguments& a) { return sampled_launches("verify_sampled", a, 2); }}},
      // logits f32 [B, V], draws as above, tokens i64 [B], probs f32 [B, V]
      {"sample_tokens(Tensor logits, Tensor seeds, Tensor lengths, Tensor temperature, Tensor top_k, Tensor top_p, "
       "Tensor(a!) tokens, Tensor(b!) probs) -> ()",
       check_sample_tokens,
       {.launches = [](const Arguments& a) { return sampled_launches("sample_tokens", a, 1); }}},
      // logits f32 [B, V], hidden f32 [H, 4], output f32 [H + 1], joint_before f32 [B], num_drafts i32 [B], joint,
      // entropy and score f32 [B]
      {"filter_drafts(Tensor logits, Tensor hidden, Tensor output, Tensor? joint_before, int depth, float beta, "
       "int top, Tensor(a!) num_drafts, Tensor(b!) joint, Tensor(c!) entropy, Tensor(d!) score) -> ()",
       check_filter_drafts,
       {.assumes = "every sequence has a draft of this depth",
        .bytes_read = filter_bytes_read,
        .launches = [](const Arguments& a) { return sampled_launches("filter_drafts", a, 1); }}},
  };
}

}  // namespace longcat_ops
