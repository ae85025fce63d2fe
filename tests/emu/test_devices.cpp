// Several devices: which memory a device may access, at which scope and by which addresses.
#include "devices.h"

namespace test {

using namespace longcat_ops::ptx;

TEST(devices_access_their_own_memory_and_that_of_peers) {
  for (const bool peer : {false, true}) {
    emu::World world(1);
    auto* data = world.alloc_array<uint32_t>(1, 0, "data", true);
    if (peer) world.make_peer_accessible(data);
    run_on(world, 1, [=] { store_global(data, 7); });
    if (!peer) {
      CHECK_ERROR("peer", world.synchronize());
      continue;
    }
    world.synchronize();
    CHECK_EQ(*data, 7u);
  }
  for (const bool load : {false, true}) {
    emu::World world(1);
    auto* data = world.alloc_array<uint32_t>(64, 0, "data", true);
    world.launch({.device = 1, .block = 1, .smem_bytes = 1024, .body = [=] {
                    const uint32_t base = dynamic_smem_base();
                    for (uint32_t i = 0; i < 16; ++i) store_shared(base + 16 * i, Vec16{});
                    mbarrier_init(base + 512, 1);
                    fence_proxy_async_shared();
                    if (load)
                      bulk_load(base, data, 256, base + 512);
                    else
                      bulk_store(data, base, 256);
                  }});
    CHECK_ERROR("peer", world.synchronize());
  }
}

TEST(devices_run_at_the_same_time) {
  for (const emu::Policy policy : kPolicies) {
    emu::World world(1, policy);
    auto* flags = world.alloc_array<uint32_t>(2, 0, "flags", true);
    flags[0] = flags[1] = 0;
    world.make_peer_accessible(flags);
    for (uint32_t device : {0u, 1u})
      run_on(world, int(device), [=] {
        for (uint32_t step = 1; step <= 5; ++step) {
          store_release_sys(flags + device, step);
          while (load_acquire_sys(flags + (1 - device)) < step) spin_pause();
        }
      });
    world.synchronize();
    CHECK_EQ(flags[0] + flags[1], 10u);
  }
}

TEST(devices_scope_of_strong_accesses) {
  const auto exchange = [](auto write, auto read) {
    emu::World world(1);
    auto* flag = world.alloc_array<uint32_t>(1, 0, "flag", true);
    *flag = 0;
    world.make_peer_accessible(flag);
    run_on(world, 0, [=] { write(flag); });
    run_on(world, 1, [=] {
      while (read(flag) == 0) spin_pause();
    });
    world.synchronize();
  };
  const auto release_sys = [](uint32_t* p) { store_release_sys(p, 1); };
  const auto release_gpu = [](uint32_t* p) { red_add_release_gpu(p, 1); };
  const auto relaxed_sys = [](uint32_t* p) { store_relaxed_sys(p, 1); };
  const auto relaxed_gpu = [](uint32_t* p) { store_relaxed_gpu(p, 1); };
  const auto read_sys = [](uint32_t* p) { return load_acquire_sys(p); };
  const auto read_gpu = [](uint32_t* p) { return load_acquire_gpu(p); };
  const auto poll_sys = [](uint32_t* p) { return load_relaxed_sys(p); };
  const auto poll_gpu = [](uint32_t* p) { return load_relaxed_gpu(p); };
  exchange(release_sys, read_sys);
  exchange(relaxed_sys, poll_sys);
  CHECK_ERROR("scope", exchange(release_gpu, read_sys));
  CHECK_ERROR("scope", exchange(release_sys, read_gpu));
  CHECK_ERROR("scope", exchange(relaxed_gpu, poll_sys));
  CHECK_ERROR("scope", exchange(relaxed_sys, poll_gpu));
}

TEST(multimem_addresses) {
  const auto with = [](auto body, int device = 0) {
    emu::World world(1);
    Shared<Vec16> data(world, 4);
    run_on(world, device, [=] { body(data); });
    world.synchronize();
  };
  constexpr auto kF32 = MultimemType::kF32;
  with([](auto& s) { (void)multimem_load_add_relaxed_sys<kF32>(s.mc + 3); });
  // Operations other than multimem on a multicast address.
  CHECK_ERROR("multicast", with([](auto& s) { (void)load_global(s.mc); }));
  CHECK_ERROR("multicast", with([](auto& s) { store_global(s.mc + 1, Vec16{}); }));
  CHECK_ERROR("multicast", with([](auto& s) { (void)load_acquire_sys(&s.mc->x); }));
  CHECK_ERROR("multicast", with([](auto& s) { red_add_relaxed_sys(&s.mc->x, 1); }));
  CHECK_ERROR("multicast", with([](auto& s) { (void)load_global(s.mc + 4); }));
  // Multimem operations on other addresses.
  CHECK_ERROR("multicast", with([](auto& s) { (void)multimem_load_add_weak<kF32>(s.of[0]); }));
  CHECK_ERROR("multicast", with([](auto& s) { multimem_store_relaxed_sys(s.of[0], Vec16{}); }));
  CHECK_ERROR("multicast", with([](auto& s) { multimem_red_add_relaxed_sys(&s.of[0]->x, 1u); }));
  CHECK_ERROR("out-of-bounds", with([](auto& s) { multimem_store_relaxed_sys(s.mc + 4, Vec16{}); }));
  CHECK_ERROR("out-of-bounds", with([](auto& s) { multimem_store_relaxed_sys(s.mc - 1, Vec16{}); }));
  CHECK_ERROR("misaligned", with([](auto& s) { (void)multimem_load_add_weak<kF32>((Vec16*)(&s.mc->z)); }));
  CHECK_ERROR("multicast", with([](auto& s) { multimem_store_weak(&s.mc->x, 1u); }, 5));  // not a member
}

TEST(multimem_binding) {
  emu::World world(1);
  auto* a = world.alloc_array<uint32_t>(4, 0, "a", true);
  auto* b = world.alloc_array<uint32_t>(4, 1, "b", true);
  auto* c = world.alloc_array<uint32_t>(4, 1, "c", true);
  auto* longer = world.alloc_array<uint32_t>(8, 2, "longer", true);
  CHECK_ERROR("multicast", world.bind_multicast({a}, "one device"));
  CHECK_ERROR("multicast", world.bind_multicast({b, c}, "one device twice"));
  CHECK_ERROR("multicast", world.bind_multicast({a, longer}, "two sizes"));
  CHECK_ERROR("multicast", world.bind_multicast({a, b + 1}, "not a start"));
  auto* mc = static_cast<uint32_t*>(world.bind_multicast({a, b}, "good"));
  world.unregister_memory(b);
  CHECK_ERROR("multicast", run(world, 1, 1, 0, [=] { multimem_store_weak(mc, 1u); }));
}

TEST(multimem_uninitialised_members) {
  emu::World world(1);
  Shared<uint32_t> data(world, 4, false);
  run_on(world, 0, [=] {
    multimem_store_relaxed_sys(data.mc, 1u);
    (void)multimem_load_add_relaxed_sys<MultimemType::kF32>(data.mc);
    (void)multimem_load_add_relaxed_sys<MultimemType::kF32>(data.mc + 1);
  });
  CHECK_ERROR("uninitialised", world.synchronize());
}

}  // namespace test
