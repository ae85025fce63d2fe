// How routing is launched: a pure function of the shapes, for the launcher and for `explain`.
#pragma once

#include <cstdint>

namespace longcat_ops {

struct MoeRouteConfig {
  int64_t blocks;
  int threads;  // a warp per token
  bool clear;   // a launch of its own zeroes counts; otherwise the only block, or the first of a cluster, does
  int cluster;  // all blocks, or 1
  int slots;    // chunks of 8 logits per lane
};

constexpr int kRouteMaxThreads = 256;

MoeRouteConfig choose_moe_route_config(int64_t tokens, int64_t num_experts);

}  // namespace longcat_ops
