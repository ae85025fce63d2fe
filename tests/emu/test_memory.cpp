// Loads and stores, races down to bytes, atomics, fences, scopes.
#include "check.h"

namespace test {
namespace {

using namespace longcat_ops::ptx;

// Threads 0 and 32, in different warps, run one function each; nothing orders them.
template <class First, class Second>
void run_pair(emu::World& world, First first, Second second) {
  run(world, 1, 64, 256, [=] {
    if (thread_index() == 0) first(dynamic_smem_base());
    if (thread_index() == 32) second(dynamic_smem_base());
  });
}
template <class First, class Second>
void run_pair(First first, Second second) {
  for (const emu::Policy policy : kPolicies)
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      emu::World world(seed, policy);
      run_pair(world, first, second);
    }
}

template <class T>
auto store_at(uint32_t offset) {
  return [offset](uint32_t base) { store_shared(base + offset, T{}); };
}

}  // namespace

TEST(memory_neighbouring_small_stores_do_not_conflict) {
  run_pair(store_at<uint8_t>(0), store_at<uint8_t>(1));
  run_pair(store_at<uint16_t>(2), store_at<uint16_t>(0));
  run_pair(store_at<uint16_t>(6), store_at<uint32_t>(0));
  run_pair(store_at<Vec8>(8), store_at<uint32_t>(4));
  run_pair(store_at<Vec16>(16), store_at<uint8_t>(15));
}

TEST(memory_overlapping_stores_conflict) {
  CHECK_ERROR("race", run_pair(store_at<uint8_t>(3), store_at<uint32_t>(0)));
  CHECK_ERROR("race", run_pair(store_at<uint16_t>(2), store_at<uint8_t>(3)));
  CHECK_ERROR("race", run_pair(store_at<Vec16>(0), store_at<uint16_t>(14)));
  CHECK_ERROR("race", run_pair(store_at<uint8_t>(9), store_at<Vec8>(8)));
  CHECK_ERROR("race", run_pair(store_at<Vec16>(16), store_at<Vec16>(16)));
}

TEST(memory_byte_races_in_global_memory) {
  emu::World good(1);
  auto* data = good.alloc_array<uint16_t>(64, 0, "data");
  run(good, 1, 64, 0, [=] { store_global(data + thread_index(), thread_index()); });
  for (uint32_t i = 0; i < 64; ++i) CHECK_EQ(data[i], i);
  CHECK_ERROR("race",
              run(good, 1, 64, 0, [=] { store_global(data + thread_index() / 32 * 0 + thread_index() % 48, 1); }));
}

TEST(memory_write_after_read_and_read_after_write) {
  const auto prepared = [](bool write_first) {
    emu::World world(2);
    run(world, 1, 64, 64, [=] {
      const uint32_t base = dynamic_smem_base();
      if (thread_index() == 0) store_shared(base, 1u);
      sync_threads();
      if (thread_index() == (write_first ? 0u : 32u)) store_shared(base, 2u);
      if (thread_index() == (write_first ? 32u : 0u)) (void)load_shared<uint32_t>(base);
    });
  };
  CHECK_ERROR("race", prepared(true));
  CHECK_ERROR("race", prepared(false));
}

TEST(memory_bounds_alignment_initialisation) {
  CHECK_ERROR("out-of-bounds", run(1, 32, 64, [] { store_shared(dynamic_smem_base() + 64, 1u); }));
  CHECK_ERROR("out-of-bounds", run(1, 32, 64, [] { store_shared(dynamic_smem_base() - 4, 1u); }));
  CHECK_ERROR("misaligned", run(1, 32, 64, [] { store_shared(dynamic_smem_base() + 2, 1u); }));
  CHECK_ERROR("misaligned", run(1, 32, 64, [] { store_shared(dynamic_smem_base() + 8, Vec16{}); }));
  CHECK_ERROR("uninitialised", run(1, 32, 64, [] { (void)load_shared<uint8_t>(dynamic_smem_base()); }));
  CHECK_ERROR("uninitialised", run(1, 1, 64, [] {
                store_shared<uint16_t>(dynamic_smem_base(), 1);
                (void)load_shared<uint32_t>(dynamic_smem_base());
              }));
  emu::World world(1);
  auto* data = world.alloc_array<uint32_t>(4, 0, "data");
  CHECK_ERROR("uninitialised", run(world, 1, 1, 0, [=] { (void)load_global(data); }));
  emu::World second(1);
  auto* other = second.alloc_array<uint32_t>(4, 0, "data", true);
  CHECK_ERROR("out-of-bounds", run(second, 1, 1, 0, [=] { (void)load_global(other + 4); }));
  CHECK_ERROR("out-of-bounds", run(second, 1, 1, 0, [=] { prefetch_global_l2(other + 4); }));
  emu::World third(1);
  auto* before = third.alloc_array<uint32_t>(4, 0, "data", true);
  CHECK_ERROR("out-of-bounds", run(third, 1, 1, 0, [=] { store_global(before - 1, 0); }));
  emu::World fourth(1);
  uint32_t outside = 0;
  CHECK_ERROR("out-of-bounds", run(fourth, 1, 1, 0, [&outside] { store_global(&outside, 1); }));
}

TEST(memory_registered_host_memory) {
  std::vector<uint32_t> input(64, 7), output(64, 0);
  emu::World world(1);
  world.register_memory(input.data(), 256, 0, "input");
  world.register_memory(output.data(), 256, 0, "output", false);
  world.register_memory(input.data() + 4, 16, 0, "a view");  // changes nothing
  uint32_t *in = input.data(), *out = output.data();
  run(world, 2, 32, 0, [=] {
    const uint32_t i = block_index() * 32 + thread_index();
    store_global(out + i, load_global_nc(in + i) + i);
  });
  for (uint32_t i = 0; i < 64; ++i) CHECK_EQ(output[i], 7 + i);
  world.mark_initialised(out, 256);
  world.unregister_memory(in);
  CHECK_ERROR("out-of-bounds", run(world, 1, 1, 0, [=] { (void)load_global(in); }));
}

TEST(memory_nc_loads_of_data_that_is_written) {
  for (const bool load_first : {true, false}) {
    emu::World world(1);
    auto* data = world.alloc_array<uint32_t>(1, 0, "data", true);
    CHECK_ERROR("read-only", run(world, 1, 1, 0, [=] {
                  if (load_first) (void)load_global_nc(data);
                  store_global(data, 1);
                  if (!load_first) (void)load_global_nc(data);
                }));
  }
  emu::World world(1);
  auto* data = world.alloc_array<uint32_t>(1, 0, "data", true);
  world.launch({.block = 1, .body = [=] { store_global(data, load_global(data) + 1); }});
  world.launch({.block = 1, .body = [=] { (void)load_global_nc(data); }});
  world.launch({.block = 1, .body = [=] { store_global(data, 3); }});
  world.synchronize();
}

enum class Signal { kRelease, kFence, kCtaFence, kRelaxed, kAcquireFence };

static void message(emu::Policy policy, uint64_t seed, Signal signal) {
  emu::World world(seed, policy);
  auto* data = world.alloc_array<uint32_t>(1, 0, "data");
  auto* flag = world.alloc_array<uint32_t>(1, 0, "flag", true);
  *flag = 0;
  run(world, 2, 1, 0, [=] {
    if (block_index() == 0) {
      store_global(data, 42);
      if (signal == Signal::kFence || signal == Signal::kAcquireFence) fence_acq_rel_gpu();
      if (signal == Signal::kCtaFence) fence_acq_rel_cta();
      if (signal == Signal::kRelease)
        red_add_release_gpu(flag, 1);
      else
        store_relaxed_gpu(flag, 1);
      return;
    }
    if (signal == Signal::kAcquireFence) {
      while (load_relaxed_gpu(flag) < 1) spin_pause();
      fence_acq_rel_gpu();
    } else {
      while (load_acquire_gpu(flag) < 1) spin_pause();
    }
    if (load_global(data) != 42) throw std::runtime_error("wrong value");
  });
}

TEST(memory_release_and_acquire) {
  for (const emu::Policy policy : kPolicies)
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      for (const Signal signal : {Signal::kRelease, Signal::kFence, Signal::kAcquireFence})
        message(policy, seed, signal);
      CHECK_ERROR("race", message(policy, seed, Signal::kRelaxed));
      CHECK_ERROR("scope", message(policy, seed, Signal::kCtaFence));
    }
}

TEST(memory_release_at_gpu_scope_does_not_reach_another_device) {
  const auto signal = [](bool sys) {
    emu::World world(1);
    auto* flag = world.alloc_array<uint32_t>(1, 0, "flag", true);
    *flag = 0;
    world.make_peer_accessible(flag);
    world.launch({.device = 0, .block = 1, .body = [=] {
                    if (sys)
                      store_release_sys(flag, 1);
                    else
                      store_release_gpu(flag, 1);
                  }});
    world.launch({.device = 1, .block = 1, .body = [=] {
                    while (load_acquire_sys(flag) == 0) spin_pause();
                  }});
    world.synchronize();
  };
  signal(true);
  CHECK_ERROR("scope", signal(false));
}

static void grid_barrier(uint32_t resident) {
  emu::Settings settings;
  settings.max_resident_ctas = resident;
  emu::World world(4, emu::Policy::kRandom, settings);
  auto* data = world.alloc_array<uint32_t>(4 * 32, 0, "data");
  auto* counter = world.alloc_array<uint32_t>(1, 0, "counter", true);
  *counter = 0;
  run(world, 4, 32, 0, [=] {
    const uint32_t i = block_index() * 32 + thread_index();
    store_global(data + i, i);
    sync_threads();
    if (thread_index() == 0) {
      (void)atomic_add_acq_rel_gpu(counter, 1);
      while (load_acquire_gpu(counter) < grid_size()) spin_pause();
    }
    sync_threads();
    if (load_global(data + (i + 40) % 128) != (i + 40) % 128) throw std::runtime_error("wrong value");
  });
}

TEST(memory_grid_barrier_needs_all_ctas) {
  grid_barrier(4);
  CHECK_ERROR("deadlock", grid_barrier(3));
}

TEST(memory_spin_loop_with_a_time_limit_ends) {
  emu::World world(1);
  auto* flag = world.alloc_array<uint32_t>(1, 0, "flag", true);
  *flag = 0;
  run(world, 1, 1, 0, [=] {
    const uint64_t begin = globaltimer_ns();
    while (load_acquire_gpu(flag) == 0 && globaltimer_ns() - begin < 500'000'000) spin_pause();
  });
}

TEST(memory_release_covers_only_what_came_before) {
  emu::World world(1, emu::Policy::kRandom);
  auto* data = world.alloc_array<uint32_t>(1, 0, "data", true);
  auto* flag = world.alloc_array<uint32_t>(1, 0, "flag", true);
  *flag = 0;
  CHECK_ERROR("race", run(world, 2, 1, 0, [=] {
                if (block_index() == 0) {
                  store_release_gpu(flag, 1);
                  store_global(data, 1);
                } else {
                  while (load_acquire_gpu(flag) == 0) spin_pause();
                  (void)load_global(data);
                }
              }));
}

}  // namespace test
