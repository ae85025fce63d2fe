#include "step/pack_rows.cuh"

#include "launch/launch.h"

namespace longcat_ops::step {
namespace {

int launch_pack_rows(const lc_pack_rows_args& args, lc_stream_t stream) {
  const int64_t rows = args.sequences * args.width;
  const PackRowsParams params{
      .tokens = args.tokens,
      .num_drafts = args.num_drafts,
      .lengths = args.lengths,
      .ids = args.ids,
      .sequence = args.sequence,
      .position = args.position,
      .first_row = args.first_row,
      .num_rows = args.num_rows,
      .stride_tokens = args.token_stride,
      .copies = args.copies,
      .sequences = static_cast<uint32_t>(args.sequences),
      .width = static_cast<uint32_t>(args.width),
  };
  const int64_t span = args.sequences > 0 ? (args.sequences - 1) * args.token_stride + args.width : 0;
  const Memory memory = Memory()
                            .reads("tokens", args.tokens, span)
                            .reads("num_drafts", args.num_drafts, args.sequences)
                            .reads("lengths", args.lengths, args.sequences)
                            .writes("ids", args.ids, rows, Filler::kNoIndex)
                            .writes("sequence", args.sequence, rows, Filler::kNoIndex)
                            .writes("position", args.position, rows, Filler::kNoIndex)
                            .writes("first_row", args.first_row, args.sequences, Filler::kNoIndex)
                            .writes("num_rows", args.num_rows, args.copies, Filler::kNoIndex);
  const StepConfig config = choose_pack_rows_config(args.sequences);
  return launch(pack_rows_kernel, {"pack_rows", config.blocks, config.threads, config.smem}, params, stream, memory);
}

}  // namespace
}  // namespace longcat_ops::step

extern "C" int lc_pack_rows(const lc_pack_rows_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_pack_rows", args)) return status;
  return longcat_ops::step::launch_pack_rows(*args, stream);
}
