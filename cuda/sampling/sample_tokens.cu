#include "sampling/sample_tokens.cuh"

#include "sampling/arguments.h"

namespace longcat_ops::sampling {
namespace {

int launch_sample_tokens(const lc_sample_tokens_args& args, lc_stream_t stream) {
  const lc_matrix &logits = args.logits, &probs = args.probs;
  const int64_t sequences = logits.rows;
  const SamplingConfig config = choose_sampled_config(sequences, logits.columns);
  const SampleParams params{
      .logits = static_cast<const float*>(logits.data),
      .draws = draws_of(args.draws),
      .tokens = args.tokens,
      .probs = static_cast<float*>(probs.data),
      .stride_logits = logits.row_stride,
      .stride_tokens = args.token_stride,
      .stride_probs = probs.row_stride,
      .width = static_cast<uint32_t>(logits.columns),
      .cluster = static_cast<uint32_t>(config.cluster),
      .threads = static_cast<uint32_t>(config.threads),
  };
  Memory memory;
  memory.reads("logits", &logits)
      .updates("tokens", args.tokens, span_of(sequences, args.token_stride, 1))
      .writes("probs", &probs);
  add_draws(memory, args.draws, sequences);
  LaunchConfig launched{"sample_tokens", config.blocks, config.threads, kSampledSmemBytes};
  launched.cluster = config.cluster;
  return launch(sample_tokens_kernel, launched, params, stream, memory);
}

}  // namespace
}  // namespace longcat_ops::sampling

extern "C" int lc_sample_tokens(const lc_sample_tokens_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_sample_tokens", args)) return status;
  return longcat_ops::sampling::launch_sample_tokens(*args, stream);
}
