#include "sampling/verify_greedy.cuh"

#include "sampling/arguments.h"

namespace longcat_ops::sampling {
namespace {

int launch_verify_greedy(const lc_verify_greedy_args& args, lc_stream_t stream) {
  const lc_verified& v = args.verified;
  const SamplingConfig config = choose_verify_greedy_config(v.sequences, v.width);
  const VerifyGreedyParams params{
      .v = verified_of(v),
      .cluster = static_cast<uint32_t>(config.cluster),
      .threads = static_cast<uint32_t>(config.threads),
  };
  LaunchConfig launched{"verify_greedy", config.blocks, config.threads, kGreedySmemBytes};
  launched.cluster = config.cluster;
  return launch(verify_greedy_kernel, launched, params, stream, memory_of(v));
}

}  // namespace
}  // namespace longcat_ops::sampling

extern "C" int lc_verify_greedy(const lc_verify_greedy_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_verify_greedy", args)) return status;
  return longcat_ops::sampling::launch_verify_greedy(*args, stream);
}
