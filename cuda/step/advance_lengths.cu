#include "step/advance_lengths.cuh"

#include "launch/launch.h"

namespace longcat_ops::step {
namespace {

int64_t span_of(int64_t rows, int64_t stride, int64_t width) { return rows > 0 ? (rows - 1) * stride + width : 0; }

int launch_advance_lengths(const lc_advance_lengths_args& args, lc_stream_t stream) {
  const int64_t sequences = args.sequences;
  const AdvanceParams params{
      .tokens = args.tokens,
      .num_tokens = args.num_tokens,
      .first_row = args.first_row,
      .limits = args.limits,
      .stop_ids = args.stop_ids,
      .lengths = args.lengths,
      .num_drafts = args.num_drafts,
      .kept = args.kept,
      .newest = args.newest,
      .last_row = args.last_row,
      .stride_tokens = args.token_stride,
      .stride_newest = args.newest_stride,
      .sequences = sequences,
      .width = args.width,
      .num_stop_ids = args.num_stop_ids,
  };
  const Memory memory = Memory()
                            .reads("tokens", args.tokens, span_of(sequences, args.token_stride, args.width))
                            .reads("num_tokens", args.num_tokens, sequences)
                            .reads("first_row", args.first_row, sequences)
                            .reads("limits", args.limits, sequences)
                            .reads("stop_ids", args.stop_ids, args.num_stop_ids)
                            .updates("lengths", args.lengths, sequences)
                            .updates("num_drafts", args.num_drafts, sequences)
                            .updates("newest", args.newest, span_of(sequences, args.newest_stride, 1))
                            .writes("kept", args.kept, sequences)
                            .writes("last_row", args.last_row, sequences, Filler::kNoIndex);
  const StepConfig config = choose_advance_lengths_config(sequences);
  return launch(advance_lengths_kernel, {"advance_lengths", config.blocks, config.threads}, params, stream, memory);
}

}  // namespace
}  // namespace longcat_ops::step

extern "C" int lc_advance_lengths(const lc_advance_lengths_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_advance_lengths", args)) return status;
  return longcat_ops::step::launch_advance_lengths(*args, stream);
}
