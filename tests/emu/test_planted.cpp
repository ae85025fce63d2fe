// Every planted bug is found in every schedule; what is found of it without the detectors is luck.
#include "gemm.h"

namespace test {
namespace {

struct Found {
  int schedules = 0;
  std::string first = "-";  // kind of the first report; "numbers": a run to its end with wrong results
};

constexpr int kSeeds = 3, kSchedules = 3 * kSeeds;

template <Bug BUG>
Found find(GemmShape shape, bool detectors) {
  emu::Settings settings;
  settings.detectors = detectors;
  Found found;
  for (const emu::Policy policy : kPolicies)
    for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
      std::string kind;
      try {
        if (gemm<16, BUG>(seed, policy, settings, shape).wrong > 0) kind = "numbers";
      } catch (const emu::Error& error) {
        kind = error.kind;
      }
      if (kind.empty()) continue;
      if (++found.schedules == 1) found.first = kind;
    }
  return found;
}

struct Planted {
  const char* name;
  Found (*find)(GemmShape shape, bool detectors);
  bool silent = false;  // no result can show it here, in whatever order things happen
  GemmShape shape = {};
};

const Planted kPlanted[] = {
    {"no_full_wait", find<Bug::kNoFullWait>},
    {"no_wgmma_wait", find<Bug::kNoWgmmaWait>},
    {"no_wgmma_wait_one_block", find<Bug::kNoWgmmaWait>, false, {16, 128, 128, 1}},
    {"wrong_swizzle", find<Bug::kWrongSwizzle>},
    {"bad_stride", find<Bug::kBadStride>},
    {"no_wgmma_fence", find<Bug::kNoWgmmaFence>},
    {"no_proxy_fence", find<Bug::kNoProxyFence>, true},
    {"no_epilogue_barrier", find<Bug::kNoEpilogueBarrier>},
    {"early_release", find<Bug::kEarlyRelease>},
    {"no_empty_wait", find<Bug::kNoEmptyWait>},
    {"tx_short", find<Bug::kTxShort>},
    {"tx_long", find<Bug::kTxLong>},
    {"phase_stuck", find<Bug::kPhaseStuck>},
    {"scale_stage", find<Bug::kScaleStage>},
    {"global_out_of_bounds", find<Bug::kGlobalOutOfBounds>},
    {"no_init_fence", find<Bug::kNoInitFence>},
    {"no_init_sync", find<Bug::kNoInitSync>},
    {"touch_accumulator", find<Bug::kTouchAccumulator>},
    {"wrong_empty_count", find<Bug::kWrongEmptyCount>},
    {"fence_first", find<Bug::kFenceFirst>, true},
    {"no_warp_sync", find<Bug::kNoWarpSync>, true},
    // Needs a CTA with two tiles: the second overwrites what the first one's store reads.
    {"no_store_wait", find<Bug::kNoStoreWait>, false, {40, 256, 256, 1}},
};

}  // namespace

TEST(planted) {
  std::string missed;
  std::printf("| planted bug | found, detectors on | first report | found, detectors off | first report |\n");
  std::printf("| --- | --- | --- | --- | --- |\n");
  for (const Planted& bug : kPlanted) {
    const Found on = bug.find(bug.shape, true), off = bug.find(bug.shape, false);
    std::printf("| %s | %d of %d | %s | %d of %d | %s |\n", bug.name, on.schedules, kSchedules, on.first.c_str(),
                off.schedules, kSchedules, off.first.c_str());
    if (bug.silent) CHECK_EQ(off.schedules, 0);
    if (on.schedules != kSchedules) missed += std::string(" ") + bug.name;
  }
  CHECK_EQ(missed, "");
}

}  // namespace test
