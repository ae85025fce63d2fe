#include "moe_dispatch/moe_place.cuh"

#include "launch/launch.h"
#include "longcat_ops.h"

namespace longcat_ops::moe_dispatch {
namespace {

int launch_moe_place(const lc_moe_place_args& args, lc_stream_t stream) {
  const int64_t choices = args.tokens * args.top_k, slots = int64_t{args.experts} * args.max_replicas;
  const MoePlaceParams params{
      .ids = args.ids,
      .slots = args.slots,
      .replicas = args.replicas,
      .out = args.out,
      .choices = static_cast<uint32_t>(choices),
      .top_k = static_cast<uint32_t>(args.top_k),
      .experts = args.experts,
      .max_replicas = args.max_replicas,
      .layer = static_cast<uint32_t>(args.layer),
  };
  const Memory memory = Memory()
                            .reads("ids", args.ids, choices)
                            .reads("slots", args.slots, slots)
                            .reads("replicas", args.replicas, args.experts)
                            .writes("out", args.out, choices, Filler::kNoIndex);
  return launch(moe_place_kernel, {"moe_place", choose_moe_place_blocks(choices), kPlaceThreads}, params, stream,
                memory);
}

}  // namespace
}  // namespace longcat_ops::moe_dispatch

extern "C" int lc_moe_place(const lc_moe_place_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_moe_place", args)) return status;
  return longcat_ops::moe_dispatch::launch_moe_place(*args, stream);
}
