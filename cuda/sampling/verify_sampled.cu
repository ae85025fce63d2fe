#include "sampling/verify_sampled.cuh"

#include "sampling/arguments.h"

namespace longcat_ops::sampling {
namespace {

int launch_verify_sampled(const lc_verify_sampled_args& args, lc_stream_t stream) {
  const lc_verified& v = args.verified;
  const lc_stack& probs = args.draft_probs;
  const SamplingConfig config = choose_sampled_config(v.sequences, v.width);
  const VerifySampledParams params{
      .v = verified_of(v),
      .draws = draws_of(args.draws),
      .draft_probs = static_cast<const float*>(probs.matrix.data),
      .stride_probs = probs.stride,
      .stride_probs_row = probs.matrix.row_stride,
      .cluster = static_cast<uint32_t>(config.cluster),
      .threads = static_cast<uint32_t>(config.threads),
  };
  Memory memory = memory_of(v);
  memory.reads("draft_probs", &probs);
  add_draws(memory, args.draws, v.sequences);
  LaunchConfig launched{"verify_sampled", config.blocks, config.threads, kSampledSmemBytes};
  launched.cluster = config.cluster;
  return launch(verify_sampled_kernel, launched, params, stream, memory);
}

}  // namespace
}  // namespace longcat_ops::sampling

extern "C" int lc_verify_sampled(const lc_verify_sampled_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_verify_sampled", args)) return status;
  return longcat_ops::sampling::launch_verify_sampled(*args, stream);
}
