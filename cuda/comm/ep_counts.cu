#include "comm/ep_counts.cuh"

#include "comm/launch_ep.h"

namespace longcat_ops::comm {
namespace {

static_assert(device::kScanScratchBytes <= CountsLayout::kWarpWords);

int launch_ep_counts(const lc_ep_counts_args& a, lc_stream_t stream) {
  constexpr const char* kOp = "ep_counts";
  const lc_experts& e = a.experts;
  if (const int status = check_experts(kOp, e)) return status;
  if (a.tokens < 0 || a.tokens > e.max_tokens)
    return set_status(LC_ERR_INVALID, text(kOp, ": ", a.tokens, " tokens, expected at most ", e.max_tokens));
  EpCountsParams params{};
  params.view = expert_view_of(e);
  params.plan_offsets = a.plan_offsets;
  params.offsets = a.offsets;
  params.choices = static_cast<uint64_t>(a.tokens * e.top_k);
  params.row_bytes = static_cast<uint64_t>(sent_row_bytes(shape_of(e)));
  params.threads = static_cast<uint32_t>(counts_threads(e.num_experts));
  const CountsLayout layout = CountsLayout::of(params.view.ranks.ranks, params.view.experts);
  const Memory memory = expert_memory(e)
                            .reads("plan_offsets", a.plan_offsets, e.num_experts + 1)
                            .updates("offsets", a.offsets, params.view.local + 1);
  const LaunchConfig config = expert_launch(kOp, e, 1, static_cast<int>(params.threads), layout.bytes);
  return launch(ep_counts_kernel, config, params, stream, memory);
}

}  // namespace
}  // namespace longcat_ops::comm

extern "C" int lc_ep_counts(const lc_ep_counts_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_ep_counts", args)) return status;
  return longcat_ops::comm::launch_ep_counts(*args, stream);
}
