// A whole kernel: correct results in every schedule, and no reports.
#include "gemm.h"

namespace test {
namespace {

template <int N>
void check_correct(emu::MmaMode mode, GemmShape shape) {
  emu::Settings settings;
  settings.mma_mode = mode;
  for (const emu::Policy policy : kPolicies) {
    const GemmResult result = gemm<N, Bug::kNone>(3, policy, settings, shape);
    CHECK_EQ(result.wrong, 0);
    CHECK(result.relative_error < 3e-3);  // the rounding of bf16 is 1.6e-3
  }
}

}  // namespace

TEST(gemm_correct_n8) { check_correct<8>(emu::MmaMode::kExact, {5, 256, 512, 2}); }
TEST(gemm_correct_n32) { check_correct<32>(emu::MmaMode::kExact, {40, 256, 1024, 2}); }
TEST(gemm_correct_n64_hopper) { check_correct<64>(emu::MmaMode::kHopper, {70, 256, 512, 2}); }
TEST(gemm_correct_in_waves) {
  emu::Settings settings;
  settings.max_resident_ctas = 2;
  const GemmResult result = gemm<8, Bug::kNone>(1, emu::Policy::kRandom, settings, {33, 256, 256, 7});
  CHECK_EQ(result.wrong, 0);
}

TEST(gemm_no_complaints_over_100_seeds) {
  for (uint64_t seed = 100; seed < 200; ++seed)
    CHECK_EQ((gemm<16, Bug::kNone>(seed, kPolicies[seed % 3], {}, {24, 256, 768, 2}).wrong), 0);
}

TEST(gemm_same_seed_same_run) {
  const emu::Stats a = gemm<16, Bug::kNone>(5, emu::Policy::kRandom).stats;
  const emu::Stats b = gemm<16, Bug::kNone>(5, emu::Policy::kRandom).stats;
  const emu::Stats c = gemm<16, Bug::kNone>(6, emu::Policy::kRandom).stats;
  CHECK_EQ(a.switches, b.switches);
  CHECK_EQ(a.async_steps, b.async_steps);
  CHECK(a.async_steps != c.async_steps);
}

TEST(gemm_without_detectors) {
  emu::Settings settings;
  settings.detectors = false;
  const GemmResult result = gemm<16, Bug::kNone>(1, emu::Policy::kRandom, settings);
  CHECK_EQ(result.wrong, 0);
  CHECK_EQ(result.stats.cell_checks, 0u);
}

// Not a check: `emu_tests time` prints timings.
TEST(time) {
  for (const bool detectors : {true, false}) {
    emu::Settings settings;
    settings.detectors = detectors;
    constexpr int kRuns = 5, kTiles = 2;
    double cpu_ms = 0;
    emu::Stats stats;
    for (int i = 0; i < kRuns; ++i) {
      const GemmResult result = gemm<16, Bug::kNone>(1 + i, emu::Policy::kRandom, settings, {16, 256, 2048, 1});
      cpu_ms += result.cpu_ms;
      stats = result.stats;
    }
    std::printf("  n=16 k=2048, detectors %d: %.2f ms per CTA tile; %llu switches, %llu cells, %llu joins\n",
                int(detectors), cpu_ms / kRuns / kTiles, static_cast<unsigned long long>(stats.switches),
                static_cast<unsigned long long>(stats.cell_checks), static_cast<unsigned long long>(stats.clock_joins));
  }
}

}  // namespace test
