// Host side of the launchers of permute and combine.
#pragma once

#include "launch/instances.h"
#include "moe_dispatch/choices.cuh"

namespace longcat_ops::moe_dispatch {

// Entry: type of the entries in the kernel's lists.
template <class Entry>
LaunchConfig launch_config(const char* op, const TokenWarps& warps) {
  const MoeDispatchConfig config = choose_moe_dispatch_config(warps.tokens, warps.chunks, sizeof(Entry));
  return {op, config.blocks, config.threads, config.smem};
}

}  // namespace longcat_ops::moe_dispatch
