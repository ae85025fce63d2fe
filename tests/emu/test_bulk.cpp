// Bulk groups, copies and proxies, copies and barriers.
#include "check.h"

namespace test {

using namespace longcat_ops::ptx;

namespace {

// Stores two pieces of a buffer in two bulk groups, then runs `after`.
template <class After>
void store_then(After after) {
  for (const emu::Policy policy : kPolicies) {
    emu::World world(5, policy);
    auto* out = world.alloc_array<uint32_t>(64, 0, "out");
    run(world, 1, 1, 256, [=] {
      const uint32_t base = dynamic_smem_base();
      for (uint32_t i = 0; i < 64; ++i) store_shared(base + 4 * i, i);
      fence_proxy_async_shared();
      bulk_store(out, base, 64);
      bulk_commit();
      bulk_store(out + 16, base + 64, 64);
      bulk_commit();
      after(base, out);
    });
  }
}

}  // namespace

TEST(bulk_groups) {
  store_then([](uint32_t base, uint32_t* out) {
    bulk_wait_read<1>();
    store_shared(base, 9u);  // the first group has been read
    bulk_wait<1>();
    (void)load_global(out);
    bulk_wait<0>();
    (void)load_global(out + 16);
  });
  CHECK_ERROR("race", store_then([](uint32_t base, uint32_t*) {
                bulk_wait_read<1>();
                store_shared(base + 64, 9u);
                bulk_wait<0>();
              }));
  CHECK_ERROR("race", store_then([](uint32_t, uint32_t* out) {
                bulk_wait_read<0>();  // the source has been read, the destination perhaps not written
                (void)load_global(out);
              }));
  CHECK_ERROR("exit", store_then([](uint32_t base, uint32_t* out) {
                bulk_store(out + 32, base, 64);
                bulk_wait_read<0>();
              }));
  try {
    store_then([](uint32_t, uint32_t*) {});
    CHECK(false);
  } catch (const emu::Error& error) {
    CHECK_EQ(error.kind, std::string("exit"));
    CHECK(error.text.find("test_bulk.cpp") != std::string::npos);
  }
}

TEST(bulk_load_of_what_another_cta_wrote_needs_a_proxy_fence) {
  const auto pass_on = [](bool fence) {
    emu::World world(6);
    auto* data = world.alloc_array<uint32_t>(4, 0, "data");
    auto* flag = world.alloc_array<uint32_t>(1, 0, "flag", true);
    *flag = 0;
    run(world, 2, 1, 1024, [=] {
      if (block_index() == 0) {
        store_global(data, 5);
        for (int i = 1; i < 4; ++i) store_global(data + i, 5);
        store_release_gpu(flag, 1);
        return;
      }
      const uint32_t bar = dynamic_smem_base();
      mbarrier_init(bar, 1);
      fence_mbarrier_init();
      while (load_acquire_gpu(flag) == 0) spin_pause();
      if (fence) fence_proxy_async_global();
      mbarrier_arrive_expect_tx(bar, 16);
      bulk_load(bar + 16, data, 16, bar);
      mbarrier_wait(bar, 0);
      if (load_shared<uint32_t>(bar + 16) != 5) throw std::runtime_error("wrong value");
    });
  };
  pass_on(true);
  CHECK_ERROR("proxy", pass_on(false));
}

TEST(copies_and_barriers) {
  const auto load = [](bool fenced, bool waited, uint32_t offset) {
    emu::World world(1);
    auto* data = world.alloc_array<uint32_t>(16, 0, "data", true);
    run(world, 1, 1, 1024, [=] {
      const uint32_t bar = dynamic_smem_base();
      mbarrier_init(bar, 1);
      if (fenced) fence_mbarrier_init();
      mbarrier_arrive_expect_tx(bar, 64);
      bulk_load(bar + offset, data, 64, bar);
      if (waited) mbarrier_wait(bar, 0);
      (void)load_shared<uint32_t>(bar + offset);
    });
  };
  load(true, true, 16);
  CHECK_ERROR("mbarrier", load(false, true, 16));
  CHECK_ERROR("mbarrier", load(true, true, 0));
  CHECK_ERROR("race", load(true, false, 16));
  CHECK_ERROR("misaligned", load(true, true, 24));
}

}  // namespace test
