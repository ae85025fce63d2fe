#include "bindings/device_launch.h"

namespace longcat_ops::bindings {
namespace {

lc_verified device_verified(const Call& a) {
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
      .tokens = a.output<int64_t>("tokens"),
      .token_stride = a.tensor("tokens").strides[0],
      .num_tokens = a.output<int32_t>("num_tokens"),
  };
}

lc_draws device_draws(const Call& a) {
  return {
      .seeds = a.data<int64_t>("seeds"),
      .lengths = a.data<int32_t>("lengths"),
      .temperature = a.data<float>("temperature"),
      .top_k = a.data<int32_t>("top_k"),
      .top_p = a.data<float>("top_p"),
  };
}

void verify_greedy_device(const Call& a) {
  const lc_verify_greedy_args args{.struct_size = sizeof args, .verified = device_verified(a)};
  launch_on(a.tensor("logits"), &KernelLibrary::lc_verify_greedy, args);
}

void verify_sampled_device(const Call& a) {
  const lc_verify_sampled_args args{
      .struct_size = sizeof args,
      .verified = device_verified(a),
      .draws = device_draws(a),
      .draft_probs = device_stack(a, "draft_probs"),
  };
  launch_on(a.tensor("logits"), &KernelLibrary::lc_verify_sampled, args);
}

void sample_tokens_device(const Call& a) {
  const lc_sample_tokens_args args{
      .struct_size = sizeof args,
      .logits = device_matrix(a, "logits"),
      .draws = device_draws(a),
      .tokens = a.output<int64_t>("tokens"),
      .token_stride = a.tensor("tokens").strides[0],
      .probs = device_matrix(a, "probs"),
  };
  launch_on(a.tensor("logits"), &KernelLibrary::lc_sample_tokens, args);
}

void filter_drafts_device(const Call& a) {
  const lc_filter_drafts_args args{
      .struct_size = sizeof args,
      .logits = device_matrix(a, "logits"),
      .hidden = a.data<float>("hidden"),
      .output = a.data<float>("output"),
      .units = a.tensor("hidden").sizes[0],
      .joint_before = a.data<float>("joint_before"),
      .depth = a.integer("depth"),
      .top = a.integer("top"),
      .beta = static_cast<float>(a.number("beta")),
      .num_drafts = a.output<int32_t>("num_drafts"),
      .joint = a.output<float>("joint"),
      .entropy = a.output<float>("entropy"),
      .score = a.output<float>("score"),
  };
  launch_on(a.tensor("logits"), &KernelLibrary::lc_filter_drafts, args);
}

void register_sampling(torch::stable::detail::StableLibrary& m) {
  add_device_kernel<"verify_greedy", verify_greedy_device>(m);
  add_device_kernel<"verify_sampled", verify_sampled_device>(m);
  add_device_kernel<"sample_tokens", sample_tokens_device>(m);
  add_device_kernel<"filter_drafts", filter_drafts_device>(m);
}

}  // namespace
}  // namespace longcat_ops::bindings

LC_REGISTER_DEVICE_KERNELS(register_sampling)
