// Operations on multicast addresses: what they compute, and what they reach.
#include <set>

#include "devices.h"

namespace test {

using namespace longcat_ops::ptx;

static uint32_t bits(float v) { return std::bit_cast<uint32_t>(v); }

TEST(multimem_load_sums_in_fp32_in_any_order) {
  const auto sum = [](uint64_t seed, auto type, std::vector<Vec16> values) {
    emu::World world(seed);
    Shared<Vec16> data(world, 1);
    for (int d = 0; d < kDevices; ++d) *data.of[d] = values[d];
    auto* out = world.alloc_array<Vec16>(1, 0, "out");
    run_on(world, 0, [=] { store_global(out, multimem_load_add_relaxed_sys<decltype(type)::value>(data.mc)); });
    world.synchronize();
    return *out;
  };
  const auto f32 = std::integral_constant<MultimemType, MultimemType::kF32>();
  const auto bf16 = std::integral_constant<MultimemType, MultimemType::kBF16>();
  const auto f16 = std::integral_constant<MultimemType, MultimemType::kF16>();
  // 2^24 + 1 + 1 is 2^24 or 2^24 + 2, depending on the order: both must occur.
  std::set<uint32_t> seen;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const Vec16 r =
        sum(seed, f32, {{bits(0x1p24f), bits(1.5f), 0, 0}, {bits(1), bits(2), 0, 7}, {bits(1), bits(4), 0, 0}});
    seen.insert(r.x);
    CHECK_EQ(r.y, bits(7.5f));
    CHECK_EQ(r.w, 7u);  // a subnormal number is kept
  }
  CHECK(seen == (std::set<uint32_t>{bits(0x1p24f), bits(0x1p24f + 2)}));
  // 1 + 2^-9 + 2^-9 is 1 in bf16 steps and, a tie to even, in fp32 rounded once. 1 + 2^-9 + 3 * 2^-10 is no tie there.
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const uint32_t one = pack_bf16x2(1, -2), small = pack_bf16x2(0x1p-9f, 0), more = pack_bf16x2(0x1p-9f + 0x1p-10f, 0);
    CHECK_EQ(sum(seed, bf16, {{one, one, 0, 0}, {small, small, 0, 0}, {small, more, 0, 0}}).x, pack_bf16x2(1, -2));
    CHECK_EQ(sum(seed, bf16, {{one, one, 0, 0}, {small, small, 0, 0}, {small, more, 0, 0}}).y,
             pack_bf16x2(1 + 0x1p-7f, -2));
    const uint32_t big = pack_f16x2(60000, 1), half = pack_f16x2(30000, 0x1p-11f), less = pack_f16x2(-40000, 0x1p-11f);
    CHECK_EQ(sum(seed, f16, {{big, 0, 0, 0}, {half, 0, 0, 0}, {less, 0, 0, 0}}).x, pack_f16x2(50000, 1 + 0x1p-10f));
  }
}

TEST(multimem_load_of_smaller_sizes_minimum_maximum) {
  emu::World world(1);
  Shared<Vec16> data(world, 1);
  const float nan = std::bit_cast<float>(0x7fffffffu);
  for (int d = 0; d < kDevices; ++d)
    *data.of[d] = {pack_bf16x2(float(d), d == 1 ? nan : -float(d)), pack_f16x2(-0.5f * float(d), nan), bits(1),
                   bits(2)};
  auto* out = world.alloc_array<uint32_t>(7, 0, "out");
  run_on(world, 0, [=] {
    const uint32_t* mc = &data.mc->x;
    store_global(out, multimem_load_max_relaxed_sys<MultimemType::kBF16>(mc));
    store_global(out + 1, multimem_load_min_relaxed_sys<MultimemType::kBF16>(mc));
    store_global(out + 2, multimem_load_max_relaxed_sys<MultimemType::kF16>(mc + 1));
    store_global(out + 3, multimem_load_min_relaxed_sys<MultimemType::kF16>(mc + 1));
    const Vec8 sum = multimem_load_add_weak<MultimemType::kF32>(reinterpret_cast<const Vec8*>(mc + 2));
    store_global(out + 4, sum.x);
    store_global(out + 5, sum.y);
    store_global(out + 6, multimem_load_add_acquire_sys<MultimemType::kF32>(mc + 3));
  });
  world.synchronize();
  CHECK_EQ(out[0], pack_bf16x2(2, -0.0f));
  CHECK_EQ(out[1], pack_bf16x2(0, -2));
  CHECK_EQ(out[2], pack_f16x2(-0.0f, nan));
  CHECK_EQ(out[3], pack_f16x2(-1, nan));
  CHECK_EQ(out[4], bits(3));
  CHECK_EQ(out[5], bits(6));
  CHECK_EQ(out[6], bits(6));
}

TEST(multimem_stores_and_additions_reach_every_member) {
  for (const emu::Policy policy : kPolicies) {
    emu::World world(3, policy);
    Shared<Vec16> data(world, 8);
    for (uint32_t device = 0; device < kDevices; ++device)
      run_on(world, int(device), [=] {
        uint32_t* const mc = &data.mc->x;
        multimem_red_add_relaxed_sys(mc, device + 1);
        multimem_red_add_relaxed_sys(reinterpret_cast<uint64_t*>(mc) + 1, uint64_t(device + 1) << 32);
        const uint32_t f = bits(float(device + 1));
        multimem_red_add_vector_relaxed_sys<MultimemType::kF32>(data.mc + 1, {f, f, bits(0x1p-130f), 0});
        const uint32_t b = pack_bf16x2(float(device), 1), h = pack_f16x2(float(device), 1);
        multimem_red_add_vector_relaxed_sys<MultimemType::kBF16>(data.mc + 2, {b, 0, b, 0});
        multimem_red_add_vector_relaxed_sys<MultimemType::kF16>(data.mc + 3, {h, 0, h, 0});
        if (device != 0) return;
        multimem_store_relaxed_sys(data.mc + 4, Vec16{1, 2, 3, 4});
        multimem_store_release_sys(reinterpret_cast<Vec8*>(data.mc + 5), Vec8{5, 6});
        multimem_store_weak(mc + 22, 7u);
      });
    world.synchronize();
    for (const Vec16* member : data.of) {
      uint64_t wide;
      std::memcpy(&wide, &member[0].z, sizeof wide);
      CHECK_EQ(member[0].x, 6u);
      CHECK_EQ(wide, 6ull << 32);
      CHECK_EQ(member[1].x, bits(6));
      CHECK_EQ(member[1].y, bits(6));
      CHECK_EQ(member[1].z, 0u);  // flushed
      CHECK_EQ(member[2].z, pack_bf16x2(3, 3));
      CHECK_EQ(member[3].x, pack_f16x2(3, 3));
      CHECK_EQ(member[4].w, 4u);
      CHECK_EQ(member[5].y, 6u);
      CHECK_EQ(member[5].z, 7u);
    }
  }
}

}  // namespace test
