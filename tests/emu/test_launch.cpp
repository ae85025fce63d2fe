// Streams, waves, programmatic dependent launch.
#include "check.h"

namespace test {

using namespace longcat_ops::ptx;

TEST(launches_of_a_stream_are_ordered) {
  for (const emu::Policy policy : kPolicies) {
    emu::World world(1, policy);
    auto* data = world.alloc_array<uint32_t>(64, 0, "data");
    for (uint32_t step = 0; step < 5; ++step)
      world.launch({.grid = 2, .block = 32, .body = [=] {
                      const uint32_t i = block_index() * 32 + thread_index();
                      const uint32_t old = step == 0 ? 0 : load_global(data + (step % 2 ? 63 - i : i));
                      store_global(data + (step % 2 ? 63 - i : i), old + 1);
                    }});
    world.synchronize();
    for (uint32_t i = 0; i < 64; ++i) CHECK_EQ(data[i], 5u);
  }
}

TEST(waves_run_all_ctas_and_find_races_between_them) {
  emu::Settings settings;
  settings.max_resident_ctas = 3;
  emu::World world(1, emu::Policy::kRandom, settings);
  auto* data = world.alloc_array<uint32_t>(100 * 32, 0, "data");
  run(world, 100, 32, 64, [=] { store_global(data + block_index() * 32 + thread_index(), block_index()); });
  for (uint32_t i = 0; i < 3200; ++i) CHECK_EQ(data[i], i / 32);
  // CTA 0 has long ended when CTA 90 runs, perhaps in its place, but nothing orders the two.
  for (uint64_t seed = 1; seed < 10; ++seed) {
    emu::Settings one;
    one.max_resident_ctas = 1;
    emu::World race(seed, emu::Policy::kRandom, one);
    auto* word = race.alloc_array<uint32_t>(1, 0, "word");
    CHECK_ERROR("race", run(race, 91, 32, 0, [=] {
                  if (thread_index() == 5 && block_index() % 90 == 0) store_global(word, 1);
                }));
  }
}

TEST(waves_hand_over_by_release_and_acquire) {
  emu::Settings settings;
  settings.max_resident_ctas = 1;
  emu::World world(1, emu::Policy::kRandom, settings);
  auto* word = world.alloc_array<uint32_t>(1, 0, "word", true);
  auto* flag = world.alloc_array<uint32_t>(1, 0, "flag", true);
  *word = *flag = 0;
  run(world, 6, 1, 0, [=] {
    while (load_acquire_gpu(flag) != block_index()) spin_pause();
    store_global(word, load_global(word) + 1);
    store_release_gpu(flag, block_index() + 1);
  });
  CHECK_EQ(*word, 6u);
}

namespace {

struct Pdl {
  bool wait = true;
  bool trigger = true;
  bool dependent = true;
};

// The second kernel reads what the first writes after its trigger.
uint64_t run_dependent(uint64_t seed, emu::Policy policy, Pdl how) {
  emu::World world(seed, policy);
  auto* data = world.alloc_array<uint32_t>(128, 0, "data");
  auto* sum = world.alloc_array<uint32_t>(128, 0, "sum");
  world.launch({.grid = 2, .block = 64, .body = [=] {
                  if (how.trigger) grid_dependency_launch();
                  sync_threads();
                  store_global(data + block_index() * 64 + thread_index(), thread_index());
                }});
  world.launch({.grid = 2, .block = 64, .dependent_launch = how.dependent, .body = [=] {
                  if (how.wait) grid_dependency_wait();
                  const uint32_t i = block_index() * 64 + thread_index();
                  store_global(sum + i, load_global(data + 127 - i) + 1);
                }});
  world.launch({.block = 128, .body = [=] { (void)load_global(sum + thread_index()); }});
  world.synchronize();
  for (uint32_t i = 0; i < 128; ++i) CHECK_EQ(sum[i], (127 - i) % 64 + 1);
  return world.stats().early_starts;
}

}  // namespace

TEST(dependent_launch_starts_early_and_waits) {
  uint64_t early = 0;
  for (const emu::Policy policy : kPolicies)
    for (uint64_t seed = 1; seed <= 5; ++seed) early += run_dependent(seed, policy, {});
  CHECK(early > 0);
  CHECK_EQ(run_dependent(1, emu::Policy::kEager, {.wait = true, .trigger = true, .dependent = false}), 0u);
}

TEST(dependent_launch_without_wait_is_a_race) {
  for (const emu::Policy policy : kPolicies)
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      for (const bool trigger : {true, false}) {
        try {
          run_dependent(seed, policy, {.wait = false, .trigger = trigger});
          CHECK(false);
        } catch (const emu::Error& error) {
          CHECK(error.kind == "race" || error.kind == "uninitialised");
        }
      }
      run_dependent(seed, policy, {.wait = false, .trigger = true, .dependent = false});
    }
}

namespace {

struct Middle {
  bool wait = true;
  bool trigger_first = false;
  bool one_thread_waits = false;
};

// The third kernel reads, before it waits, what the first wrote.
void run_behind(uint64_t seed, emu::Policy policy, Middle how) {
  emu::World world(seed, policy);
  auto* data = world.alloc_array<uint32_t>(64, 0, "data");
  auto* sum = world.alloc_array<uint32_t>(64, 0, "sum");
  world.launch({.grid = 2, .block = 32, .body = [=] {
                  grid_dependency_launch();
                  store_global(data + block_index() * 32 + thread_index(), thread_index());
                }});
  world.launch({.grid = 3, .block = 32, .dependent_launch = true, .body = [=] {
                  if (how.trigger_first) grid_dependency_launch();
                  if (how.wait && (!how.one_thread_waits || thread_index() == 5)) grid_dependency_wait();
                  if (!how.one_thread_waits) grid_dependency_launch();
                }});
  world.launch({.grid = 2, .block = 32, .dependent_launch = true, .body = [=] {
                  const uint32_t i = block_index() * 32 + thread_index(), value = load_global(data + 63 - i);
                  grid_dependency_wait();
                  store_global(sum + i, value + 1);
                }});
  world.synchronize();
  for (uint32_t i = 0; i < 64; ++i) CHECK_EQ(sum[i], (63 - i) % 32 + 1);
}

}  // namespace

TEST(what_a_launch_waited_for_before_it_triggered_is_over_for_the_next) {
  for (const emu::Policy policy : kPolicies)
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      run_behind(seed, policy, {});
      run_behind(seed, policy, {.one_thread_waits = true});  // the CTA triggers when it ends
      for (const Middle how : {Middle{.trigger_first = true}, Middle{.wait = false}}) {
        try {
          run_behind(seed, policy, how);
          CHECK(false);
        } catch (const emu::Error& error) {
          CHECK(error.kind == "race" || error.kind == "uninitialised");
        }
      }
    }
}

TEST(launch_errors) {
  CHECK_ERROR("launch", run(1, 1025, 0, [] {}));
  CHECK_ERROR("launch", run(1, 32, 233 * 1024, [] {}));
  CHECK_ERROR("launch", (void)thread_index());
  CHECK_ERROR("launch", run(1, 1, 0, [] { throw std::runtime_error("of the kernel"); }));
}

TEST(worlds_can_be_used_one_inside_another) {
  emu::World outer(1);
  auto* value = outer.alloc_array<uint32_t>(1, 0, "value");
  outer.launch({.block = 1, .body = [=] { store_global(value, 1); }});
  emu::World inner(2);
  run(inner, 1, 32, 0, [] { sync_threads(); });
  outer.synchronize();
  CHECK_EQ(*value, 1u);
}

}  // namespace test
