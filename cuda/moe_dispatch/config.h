// How placing, planning, permute and combine are launched: pure functions of shapes, for launchers and `explain`.
#pragma once

#include <cstdint>

namespace longcat_ops {

enum class PlanForm {
  kAlone,     // one block
  kCluster,   // one cluster
  kLaunches,  // many blocks, in three launches: count, rows, sources
};

struct MoePlanConfig {
  PlanForm form;
  int64_t blocks;
  int threads;                // at least one per expert
  int warps;                  // warps per block that take choices
  int steps;                  // steps per warp, of 32 choices each
  int count_smem, rows_smem;  // bytes
};

constexpr int kPlanMaxThreads = 1024, kPlanMaxSteps = 8;
// Most blocks per cluster; fewer in the emulator, so that smaller sorts take several launches.
#ifdef LC_EMULATE
constexpr int kPlanMaxCluster = 2;
#else
constexpr int kPlanMaxCluster = 8;
#endif
constexpr int kPlanScanBytes = 128;  // shared memory for a sum over the block

MoePlanConfig choose_moe_plan_config(int64_t choices, int64_t num_local);

constexpr int kPlaceThreads = 128;  // moe_place: a choice each

int64_t choose_moe_place_blocks(int64_t choices);

// Permute and combine: a warp takes 32 chunks of 8 columns of one token, and lists the choices that have a row.
struct MoeDispatchConfig {
  int64_t blocks;
  int threads;
  int smem;  // bytes: a list per warp
};

constexpr int kDispatchThreads = 128;
constexpr int kPermuteEntryBytes = 4;  // a row
constexpr int kCombineEntryBytes = 8;  // a row and its weight

MoeDispatchConfig choose_moe_dispatch_config(int64_t tokens, int64_t chunks, int entry_bytes);

}  // namespace longcat_ops
