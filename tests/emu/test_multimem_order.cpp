// Operations on multicast addresses: when their writes are seen, races, address aliases.
#include "devices.h"

namespace test {

using namespace longcat_ops::ptx;

static uint32_t bits(float v) { return std::bit_cast<uint32_t>(v); }

TEST(multimem_writes_arrive_in_any_order) {
  // One device sees the second store before the first in some schedules: only a release orders them.
  const auto second_first = [](uint64_t seed, emu::Policy policy, bool release) {
    emu::World world(seed, policy);
    Shared<uint32_t> data(world, 8);
    auto* out = world.alloc_array<uint32_t>(1, 1, "out");
    run_on(world, 0, [=] {
      multimem_store_relaxed_sys(data.mc, 1u);
      if (release)
        multimem_store_release_sys(data.mc + 4, 1u);
      else
        multimem_store_relaxed_sys(data.mc + 4, 1u);
    });
    run_on(world, 1, [=] {
      while (load_acquire_sys(data.of[1] + 4) == 0) spin_pause();
      store_global(out, load_relaxed_sys(data.of[1]));
    });
    world.synchronize();
    return *out == 0;
  };
  for (const emu::Policy policy : kPolicies) {
    int count = 0;
    for (uint64_t seed = 1; seed <= 40; ++seed) {
      count += second_first(seed, policy, false);
      CHECK(!second_first(seed, policy, true));
    }
    CHECK(count > 0);
  }
}

TEST(multimem_same_address_is_seen_in_program_order) {
  for (const emu::Policy policy : kPolicies)
    for (const bool detectors : {true, false}) {
      emu::Settings settings;
      settings.detectors = detectors;
      emu::World world(1, policy, settings);
      Shared<uint32_t> data(world, 64);
      auto* out = world.alloc_array<uint32_t>(64, 0, "out");
      run_on(
          world, 0,
          [=] {
            const uint32_t i = thread_index();
            multimem_store_relaxed_sys(data.mc + i, bits(1));
            multimem_store_relaxed_sys(data.mc + i, bits(2));
            sync_threads();
            store_global(out + i, multimem_load_add_relaxed_sys<MultimemType::kF32>(data.mc + (i + 40) % 64));
          },
          64);
      world.synchronize();
      for (uint32_t i = 0; i < 64; ++i) CHECK_EQ(out[i], bits(6));
    }
}

TEST(multimem_races) {
  const auto pair = [](auto first, auto second, emu::Policy policy) {
    emu::World world(1, policy);
    Shared<uint32_t> data(world, 4);
    run_on(world, 0, [=] { first(data.mc, data.of[0]); });
    run_on(world, 1, [=] { second(data.mc, data.of[1]); });
    world.synchronize();
  };
  const auto store = [](uint32_t* mc, uint32_t*) { multimem_store_relaxed_sys(mc, 1u); };
  const auto weak_store = [](uint32_t* mc, uint32_t*) { multimem_store_weak(mc, 1u); };
  const auto load = [](uint32_t* mc, uint32_t*) { (void)multimem_load_add_relaxed_sys<MultimemType::kF32>(mc); };
  const auto weak_load = [](uint32_t* mc, uint32_t*) { (void)multimem_load_add_weak<MultimemType::kF32>(mc); };
  const auto own_store = [](uint32_t*, uint32_t* own) { store_global(own, 1); };
  const auto own_load = [](uint32_t*, uint32_t* own) { (void)load_global(own); };
  const auto own_poll = [](uint32_t*, uint32_t* own) { (void)load_relaxed_sys(own); };
  for (const emu::Policy policy : kPolicies) {
    pair(store, store, policy);
    pair(store, load, policy);
    pair(store, own_poll, policy);
    pair(load, own_load, policy);
    CHECK_ERROR("race", pair(weak_store, store, policy));
    CHECK_ERROR("race", pair(store, weak_load, policy));
    CHECK_ERROR("race", pair(store, own_load, policy));
    CHECK_ERROR("race", pair(store, own_store, policy));
    CHECK_ERROR("race", pair(load, own_store, policy));
  }
}

TEST(multimem_aliases) {
  enum { kNothing, kBarrier, kFence, kSysFence, kSignal };
  const auto read_back = [](int between, bool pedantic, uint64_t seed) {
    emu::Settings settings;
    settings.pedantic_aliases = pedantic;
    emu::World world(seed, kPolicies[seed % 3], settings);
    Shared<uint32_t> data(world, 64);
    Shared<uint32_t> flag(world, 1);
    run_on(
        world, 0,
        [=] {
          const uint32_t i = thread_index();
          multimem_store_relaxed_sys(data.mc + i, 5u);
          if (between == kFence) fence_proxy_alias();
          if (between == kSysFence) fence_acq_rel_sys();
          if (between != kNothing) sync_threads();
          if (between == kSignal) {
            if (i == 0) {
              multimem_red_add_release_sys(flag.mc, 1u);
              while (load_acquire_sys(flag.of[0]) == 0) spin_pause();
            }
            sync_threads();
          }
          const uint32_t from = between == kNothing ? i : (i + 33) % 64;
          if (load_global(data.of[0] + from) != 5) throw std::runtime_error("not seen");
        },
        64);
    world.synchronize();
  };
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    for (const int between : {kFence, kSysFence, kSignal}) read_back(between, false, seed);
    read_back(kFence, true, seed);
    for (const int between : {kNothing, kBarrier}) CHECK_ERROR("alias", read_back(between, false, seed));
    for (const int between : {kNothing, kBarrier, kSysFence, kSignal})
      CHECK_ERROR("alias", read_back(between, true, seed));
  }
  // A write overtakes a read through the other address.
  for (const bool pedantic : {false, true}) {
    emu::Settings settings;
    settings.pedantic_aliases = pedantic;
    emu::World world(1, emu::Policy::kRandom, settings);
    Shared<uint32_t> data(world, 1);
    run_on(world, 0, [=] {
      (void)load_global(data.of[0]);
      multimem_store_relaxed_sys(data.mc, 5u);
    });
    if (pedantic)
      CHECK_ERROR("alias", world.synchronize());
    else
      world.synchronize();
  }
}

}  // namespace test
