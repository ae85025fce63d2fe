#include "cpu/sampling.h"

#include "bindings/call.h"
#include "bindings/parallel.h"

namespace longcat_ops::bindings {
namespace {

constexpr int64_t kWorkOfWeight = 8;  // what a weight costs, exp and sums, in elements that are copied

cpu::Draws draws_of(const Call& a) {
  return {
      .seeds = a.data<int64_t>("seeds"),
      .lengths = a.data<int32_t>("lengths"),
      .temperature = a.data<float>("temperature"),
      .top_k = a.data<int32_t>("top_k"),
      .top_p = a.data<float>("top_p"),
  };
}

cpu::VerifyParams verify_params(const Call& a) {
  const TensorDesc& logits = a.tensor("logits");
  return {
      .logits = a.data<float>("logits"),
      .sequences = logits.sizes[0],
      .rows = logits.sizes[1],
      .width = logits.sizes[2],
      .drafts = a.data<int64_t>("drafts"),
      .draft_stride = a.tensor("drafts").strides[0],
      .num_drafts = a.data<int32_t>("num_drafts"),
      .first_row = a.data<int32_t>("first_row"),
      .draws = nullptr,
      .draft_probs = nullptr,
      .probs_stride = 0,
      .probs_row_stride = 0,
      .tokens = a.output<int64_t>("tokens"),
      .token_stride = a.tensor("tokens").strides[0],
      .num_tokens = a.output<int32_t>("num_tokens"),
  };
}

void verify_greedy_cpu(const Call& a) {
  const cpu::VerifyParams params = verify_params(a);
  parallel_over(params.sequences, params.rows * params.width,
                [&](int64_t begin, int64_t end) { cpu::verify(params, begin, end); });
}

void verify_sampled_cpu(const Call& a) {
  const cpu::Draws draws = draws_of(a);
  cpu::VerifyParams params = verify_params(a);
  params.draws = &draws;
  if (const TensorDesc* probs = a.optional_tensor("draft_probs")) {
    params.draft_probs = a.data<float>("draft_probs");
    params.probs_stride = probs->strides[0];
    params.probs_row_stride = probs->strides[1];
  }
  parallel_over(params.sequences, params.rows * params.width * kWorkOfWeight,
                [&](int64_t begin, int64_t end) { cpu::verify(params, begin, end); });
}

void sample_tokens_cpu(const Call& a) {
  const TensorDesc& logits = a.tensor("logits");
  const cpu::SampleParams params{
      .logits = a.matrix("logits"),
      .width = logits.sizes[1],
      .draws = draws_of(a),
      .tokens = a.output<int64_t>("tokens"),
      .token_stride = a.tensor("tokens").strides[0],
      .probs = a.matrix("probs"),
  };
  parallel_over(logits.sizes[0], params.width * kWorkOfWeight,
                [&](int64_t begin, int64_t end) { cpu::sample_tokens(params, begin, end); });
}

void filter_drafts_cpu(const Call& a) {
  const TensorDesc& logits = a.tensor("logits");
  const cpu::FilterParams params{
      .logits = a.matrix("logits"),
      .width = logits.sizes[1],
      .num_drafts = a.output<int32_t>("num_drafts"),
      .hidden = a.data<float>("hidden"),
      .output = a.data<float>("output"),
      .joint_before = a.data<float>("joint_before"),
      .units = a.tensor("hidden").sizes[0],
      .depth = a.integer("depth"),
      .top = a.integer("top"),
      .beta = static_cast<float>(a.number("beta")),
      .joint = a.output<float>("joint"),
      .entropy = a.output<float>("entropy"),
      .score = a.output<float>("score"),
  };
  parallel_over(logits.sizes[0], params.width * kWorkOfWeight,
                [&](int64_t begin, int64_t end) { cpu::filter_drafts(params, begin, end); });
}

}  // namespace
}  // namespace longcat_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CPU, m) {
  using namespace longcat_ops::bindings;
  add_cpu_kernel<"verify_greedy", verify_greedy_cpu>(m);
  add_cpu_kernel<"verify_sampled", verify_sampled_cpu>(m);
  add_cpu_kernel<"sample_tokens", sample_tokens_cpu>(m);
  add_cpu_kernel<"filter_drafts", filter_drafts_cpu>(m);
}
