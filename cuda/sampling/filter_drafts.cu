#include "sampling/filter_drafts.cuh"

#include <algorithm>
#include <limits>

#include "sampling/arguments.h"

namespace longcat_ops::sampling {
namespace {

int launch_filter_drafts(const lc_filter_drafts_args& args, lc_stream_t stream) {
  const lc_matrix& logits = args.logits;
  const int64_t sequences = logits.rows;
  const SamplingConfig config = choose_sampled_config(sequences, logits.columns);
  const FilterParams params{
      .logits = static_cast<const float*>(logits.data),
      .num_drafts = args.num_drafts,
      .hidden = args.hidden,
      .output = args.output,
      .joint_before = args.joint_before,
      .joint = args.joint,
      .entropy = args.entropy,
      .score = args.score,
      .stride_logits = logits.row_stride,
      .width = static_cast<uint32_t>(logits.columns),
      .units = static_cast<uint32_t>(args.units),
      .depth = static_cast<int32_t>(args.depth),
      .top = static_cast<int32_t>(std::min<int64_t>(args.top, std::numeric_limits<int32_t>::max())),
      .beta = args.beta,
      .cluster = static_cast<uint32_t>(config.cluster),
      .threads = static_cast<uint32_t>(config.threads),
  };
  const Memory memory = Memory()
                            .reads("logits", &logits)
                            .updates("num_drafts", args.num_drafts, sequences)
                            .reads("hidden", args.hidden, 4 * args.units)
                            .reads("output", args.output, args.units + 1)
                            .reads("joint_before", args.joint_before, sequences)
                            .writes("joint", args.joint, sequences)
                            .writes("entropy", args.entropy, sequences)
                            .writes("score", args.score, sequences);
  LaunchConfig launched{"filter_drafts", config.blocks, config.threads, kSampledSmemBytes};
  launched.cluster = config.cluster;
  return launch(filter_drafts_kernel, launched, params, stream, memory);
}

}  // namespace
}  // namespace longcat_ops::sampling

extern "C" int lc_filter_drafts(const lc_filter_drafts_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_filter_drafts", args)) return status;
  return longcat_ops::sampling::launch_filter_drafts(*args, stream);
}
