#include "comm/ep_dispatch.cuh"

#include "comm/launch_ep.h"

namespace longcat_ops::comm {
namespace {

int launch_ep_dispatch(const lc_ep_dispatch_args& a, lc_stream_t stream) {
  constexpr const char* kOp = "ep_dispatch";
  const lc_experts& e = a.experts;
  if (const int status = check_experts(kOp, e)) return status;
  if (const int status = check_rows(kOp, e, "x", a.x, e.max_tokens)) return status;
  const int64_t tokens = a.x.rows, choices = tokens * e.top_k;
  EpDispatchParams params{};
  params.view = expert_view_of(e);
  params.x = static_cast<const uint16_t*>(a.x.data);
  params.ids = a.ids;
  params.stride_x = a.x.row_stride;
  params.plan = {a.row_of, nullptr, tokens * at_most(e.top_k, e.num_experts), static_cast<uint32_t>(e.top_k)};
  params.warps = moe_dispatch::make_token_warps(tokens, e.hidden / device::kChunk);
  const MoeDispatchConfig chosen = choose_moe_dispatch_config(tokens, params.warps.chunks, sizeof(Place));
  // Without tokens one block flags.
  const LaunchConfig config =
      expert_launch(kOp, e, chosen.blocks > 0 ? chosen.blocks : 1, chosen.threads, kEpDispatchSmem);
  const Memory memory =
      expert_memory(e).reads("x", &a.x).reads("ids", a.ids, choices).reads("row_of", a.row_of, choices);
  return launch(e.payload == LC_E4M3 ? ep_dispatch_kernel<true> : ep_dispatch_kernel<false>, config, params, stream,
                memory);
}

}  // namespace
}  // namespace longcat_ops::comm

extern "C" int lc_ep_dispatch(const lc_ep_dispatch_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_ep_dispatch", args)) return status;
  return longcat_ops::comm::launch_ep_dispatch(*args, stream);
}
