// How routing and planning are launched: pure functions of the shapes, for the launchers and for `explain`.
#pragma once

#include <cstdint>

namespace longcat_ops {

struct MoeRouteConfig {
  int64_t blocks;
  int threads;  // a warp per token
  bool clear;   // zero counts by a launch of its own; a block that is alone does it itself
  int slots;    // chunks of 8 logits per lane
};

constexpr int kRouteClearThreads = 256;

MoeRouteConfig choose_moe_route_config(int64_t tokens, int64_t num_experts);

// One block sorts all choices in one launch; more take three: count, rows, sources.
struct MoePlanConfig {
  int64_t blocks;
  int threads;                // at least one per expert
  int warps;                  // of a block that take choices
  int steps;                  // of 32 choices per warp
  int count_smem, rows_smem;  // bytes
};

MoePlanConfig choose_moe_plan_config(int64_t choices, int64_t num_local);

}  // namespace longcat_ops
