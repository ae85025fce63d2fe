#include "comm/ep_combine.cuh"

#include "comm/launch_ep.h"

namespace longcat_ops::comm {
namespace {

int launch_ep_combine(const lc_ep_combine_args& a, lc_stream_t stream) {
  constexpr const char* kOp = "ep_combine";
  const lc_experts& e = a.experts;
  if (const int status = check_experts(kOp, e)) return status;
  const ExpertShape shape = shape_of(e);
  if (const int status = check_rows(kOp, e, "y", a.y, most_received(shape))) return status;
  if (a.y.rows != most_received(shape))
    return set_status(LC_ERR_INVALID,
                      text(kOp, ": y has ", a.y.rows, " rows, expected all ", most_received(shape), " that may come"));
  EpCombineParams params{};
  params.view = expert_view_of(e);
  params.y = static_cast<const uint8_t*>(a.y.data);
  params.stride_y = a.y.row_stride * element_bytes(LC_BF16);
  params.packs = static_cast<uint32_t>(returned_row_bytes(shape) / kPackBytes);
  params.parts = static_cast<uint32_t>(parts_of_row(params.packs));
  const LaunchConfig config =
      expert_launch(kOp, e, combine_blocks(shape), kCombineThreads, combine_smem(params.view.experts));
  return launch(ep_combine_kernel, config, params, stream, expert_memory(e).reads("y", &a.y));
}

}  // namespace
}  // namespace longcat_ops::comm

extern "C" int lc_ep_combine(const lc_ep_combine_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_ep_combine", args)) return status;
  return longcat_ops::comm::launch_ep_combine(*args, stream);
}
