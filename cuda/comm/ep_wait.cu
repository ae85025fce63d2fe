#include "comm/ep_wait.cuh"

#include "comm/launch_ep.h"

extern "C" int lc_ep_wait(const lc_ep_wait_args* args, lc_stream_t stream) {
  using namespace longcat_ops::comm;
  constexpr const char* kOp = "ep_wait";
  if (const int status = longcat_ops::check_args("lc_ep_wait", args)) return status;
  const lc_experts& e = args->experts;
  if (const int status = check_experts(kOp, e)) return status;
  if (args->traffic != LC_EP_DISPATCH && args->traffic != LC_EP_COMBINE)
    return longcat_ops::set_status(LC_ERR_INVALID, longcat_ops::text(kOp, ": traffic ", args->traffic,
                                                                     ", expected LC_EP_DISPATCH or LC_EP_COMBINE"));
  const EpWaitParams params{expert_view_of(e), static_cast<Traffic>(args->traffic)};
  return longcat_ops::launch(ep_wait_kernel, expert_launch(kOp, e, 1, longcat_ops::kWarpLanes, 0), params, stream,
                             expert_memory(e));
}
