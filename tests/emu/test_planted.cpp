#include "gemm.h"
#include "planted_runs.h"

namespace test {
namespace {

template <Bug BUG>
long wrong(const Schedule& schedule) {
  return gemm<16, BUG>(schedule.seed, schedule.policy, schedule.settings).wrong;
}

template <Bug BUG>
std::function<long(const Schedule&)> wrong_at(GemmShape shape) {
  return [=](const Schedule& schedule) {
    return gemm<16, BUG>(schedule.seed, schedule.policy, schedule.settings, shape).wrong;
  };
}

const PlantedRun kPlanted[] = {
    {"no_full_wait", wrong<Bug::kNoFullWait>},
    {"no_wgmma_wait", wrong<Bug::kNoWgmmaWait>},
    {"no_wgmma_wait_one_block", wrong_at<Bug::kNoWgmmaWait>({16, 128, 128, 1})},
    {"wrong_swizzle", wrong<Bug::kWrongSwizzle>},
    {"bad_stride", wrong<Bug::kBadStride>},
    {"no_wgmma_fence", wrong<Bug::kNoWgmmaFence>},
    {"no_proxy_fence", wrong<Bug::kNoProxyFence>, true},
    {"no_epilogue_barrier", wrong<Bug::kNoEpilogueBarrier>},
    {"early_release", wrong<Bug::kEarlyRelease>},
    {"no_empty_wait", wrong<Bug::kNoEmptyWait>},
    {"tx_short", wrong<Bug::kTxShort>},
    {"tx_long", wrong<Bug::kTxLong>},
    {"phase_stuck", wrong<Bug::kPhaseStuck>},
    {"scale_stage", wrong<Bug::kScaleStage>},
    {"global_out_of_bounds", wrong<Bug::kGlobalOutOfBounds>},
    {"no_init_fence", wrong<Bug::kNoInitFence>},
    {"no_init_sync", wrong<Bug::kNoInitSync>},
    {"touch_accumulator", wrong<Bug::kTouchAccumulator>},
    {"wrong_empty_count", wrong<Bug::kWrongEmptyCount>},
    {"fence_first", wrong<Bug::kFenceFirst>, true},
    {"no_warp_sync", wrong<Bug::kNoWarpSync>, true},
    // Needs a CTA with two tiles: the second overwrites what the first one's store reads.
    {"no_store_wait", wrong_at<Bug::kNoStoreWait>({40, 256, 256, 1})},
};

}  // namespace

TEST(planted) { check_planted_runs(kPlanted); }

}  // namespace test
