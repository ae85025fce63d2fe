// How routing is launched: a pure function of the shapes, for the launcher and for `explain`.
#pragma once

#include <cstdint>

#include "common/constants.h"

namespace longcat_ops {

struct MoeRouteConfig {
  int64_t blocks;
  int threads;  // a warp per token
  bool clear;   // a launch of its own zeroes counts; otherwise the first block does
  int slots;    // chunks of 8 logits per lane
};

constexpr int kRouteMaxThreads = 256;
// Blocks that may wait for one of them: a GPU holds all of them at once. The emulator holds fewer.
#ifdef LC_EMULATE
constexpr int kRouteWave = 8;
#else
constexpr int kRouteWave = kH100Sms;
#endif

MoeRouteConfig choose_moe_route_config(int64_t tokens, int64_t num_experts);

}  // namespace longcat_ops
