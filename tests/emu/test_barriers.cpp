// mbarriers, named barriers, warp collectives, the register budget.
#include "check.h"

namespace test {

using namespace longcat_ops::ptx;

namespace {

// Runs `body` in one CTA of `block` threads, after thread 0 has initialised an mbarrier at the start of shared memory.
template <class Body>
void with_barrier(uint32_t count, uint32_t block, Body body) {
  for (const emu::Policy policy : kPolicies) {
    emu::World world(2, policy);
    run(world, 1, block, 1024, [=] {
      const uint32_t bar = dynamic_smem_base();
      if (thread_index() == 0) {
        mbarrier_init(bar, count);
        fence_mbarrier_init();
      }
      sync_threads();
      body(bar);
    });
  }
}

}  // namespace

TEST(mbarrier_sequence) {
  with_barrier(2, 1, [](uint32_t bar) {
    require(mbarrier_test_wait(bar, 1));  // a fresh barrier: the phase before the first is complete
    require(!mbarrier_test_wait(bar, 0));
    mbarrier_arrive(bar);
    require(!mbarrier_test_wait(bar, 0));
    mbarrier_expect_tx(bar, 16);
    mbarrier_arrive(bar);
    require(!mbarrier_test_wait(bar, 0));  // 16 bytes are missing
  });
  with_barrier(2, 1, [](uint32_t bar) {
    mbarrier_arrive_n(bar, 2);
    require(mbarrier_test_wait(bar, 0));
    require(!mbarrier_test_wait(bar, 1));
    mbarrier_arrive_n(bar, 2);
    require(mbarrier_try_wait(bar, 1));
  });
}

TEST(mbarrier_orders_memory) {
  with_barrier(32, 64, [](uint32_t bar) {
    if (thread_index() < 32) {
      store_shared(bar + 64 + 4 * thread_index(), thread_index());
      mbarrier_arrive(bar);
    } else {
      mbarrier_wait(bar, 0);
      require(load_shared<uint32_t>(bar + 64 + 4 * (63 - thread_index())) == 63 - thread_index());
    }
  });
  CHECK_ERROR("race", with_barrier(32, 64, [](uint32_t bar) {
                if (thread_index() < 32) {
                  mbarrier_arrive(bar);
                  store_shared(bar + 64 + 4 * thread_index(), thread_index());
                } else {
                  mbarrier_wait(bar, 0);
                  (void)load_shared<uint32_t>(bar + 64 + 4 * (63 - thread_index()));
                }
              }));
}

TEST(mbarrier_misuse) {
  CHECK_ERROR("mbarrier", with_barrier(1, 1, [](uint32_t bar) { mbarrier_arrive_n(bar, 2); }));
  CHECK_ERROR("mbarrier", with_barrier(1, 1, [](uint32_t bar) {
                mbarrier_arrive(bar);
                mbarrier_arrive(bar);  // no thread has observed that phase 0 completed
              }));
  CHECK_ERROR("mbarrier", with_barrier(1, 1, [](uint32_t bar) { store_shared(bar + 4, 1u); }));
  CHECK_ERROR("mbarrier", with_barrier(1, 1, [](uint32_t bar) { (void)load_shared<Vec16>(bar); }));
  CHECK_ERROR("mbarrier", with_barrier(1, 1, [](uint32_t bar) { mbarrier_arrive(bar + 8); }));
  CHECK_ERROR("mbarrier", with_barrier(1, 1, [](uint32_t bar) { mbarrier_init(bar, 1); }));
  CHECK_ERROR("mbarrier", with_barrier(1, 1, [](uint32_t bar) { mbarrier_init(bar + 8, 0); }));
  CHECK_ERROR("misaligned", with_barrier(1, 1, [](uint32_t bar) { mbarrier_init(bar + 12, 1); }));
  CHECK_ERROR("deadlock", with_barrier(1, 1, [](uint32_t bar) { mbarrier_wait(bar, 0); }));
  CHECK_ERROR("deadlock", with_barrier(1, 1, [](uint32_t bar) {
                while (!mbarrier_try_wait(bar, 0)) {
                }
              }));
}

TEST(mbarrier_deadlock_report_names_line_and_phase) {
  try {
    with_barrier(3, 1, [](uint32_t bar) {
      mbarrier_arrive(bar);
      mbarrier_wait(bar, 0);
    });
  } catch (const emu::Error& error) {
    CHECK(error.text.find("test_barriers.cpp:") != std::string::npos);
    CHECK(error.text.find("mbarrier at offset 0: 2 of 3 arrivals pending, tx 0, phase 0") != std::string::npos);
    return;
  }
  CHECK(false);
}

TEST(named_barriers) {
  const auto exchange = [](bool ordered) {
    run(1, 128, 1024, [=] {
      const uint32_t base = dynamic_smem_base(), i = thread_index();
      if (i < 64) {
        store_shared(base + 4 * i, i);
        named_barrier_arrive(3, 128);
      } else {
        if (ordered) named_barrier_sync(3, 128);
        require(load_shared<uint32_t>(base + 4 * (127 - i)) == 127 - i);
        if (!ordered) named_barrier_sync(3, 128);
      }
    });
  };
  exchange(true);
  try {
    exchange(false);
    CHECK(false);
  } catch (const emu::Error& error) {
    CHECK(error.kind == "race" || error.kind == "uninitialised");
  }
  CHECK_ERROR("named-barrier", run(1, 64, 0, [] { named_barrier_sync(16, 64); }));
  CHECK_ERROR("named-barrier", run(1, 64, 0, [] { named_barrier_sync(1, 33); }));
  CHECK_ERROR("named-barrier", run(1, 96, 0, [] { named_barrier_sync(1, thread_index() < 32 ? 96 : 64); }));
  CHECK_ERROR("deadlock", run(1, 64, 0, [] {
                if (thread_index() < 32) sync_threads();
              }));
}

TEST(named_barrier_arrival_does_not_acquire) {
  CHECK_ERROR("race", run(1, 64, 128, [] {
                const uint32_t base = dynamic_smem_base();
                if (thread_index() >= 32) store_shared(base + 4 * (thread_index() - 32), 1u);
                if (thread_index() < 32)
                  named_barrier_arrive(1, 64);
                else
                  named_barrier_sync(1, 64);
                if (thread_index() < 32) store_shared(base + 4 * thread_index(), 2u);
              }));
}

TEST(warp_collectives) {
  run(1, 64, 0, [] {
    const int lane = int(lane_index());
    require(shuffle(lane * 3, 5) == 15);
    require(shuffle(lane, (lane + 1) % 32) == (lane + 1) % 32);
    require(shuffle_xor(float(lane), 4) == float(lane ^ 4));
    require(shuffle_up(lane, 2) == (lane < 2 ? lane : lane - 2));
    require(ballot(lane % 2 == 0) == 0x55555555u);
    require(any(lane == 31) && !all(lane == 31) && all(lane >= 0));
    require(redux_max(uint32_t(lane * 7 % 32)) == 31 && redux_min(uint32_t(lane) + 0xfffffff0u) == 0);
    require(match_any(uint32_t(lane % 3)) == 0x49249249u << lane % 3 && match_any(uint32_t(lane)) == 1u << lane);
    require(popcount(match_any(uint32_t(lane / 20))) == (lane < 20 ? 20u : 12u));
    require(ballot(elect_one()) != 0);
    require((ballot(elect_one()) & (ballot(elect_one()) - 1)) == 0);
  });
  const auto diverge = [] {  // NOTE: outside of the macro, which would put both calls on one line
    if (lane_index() < 16)
      warp_sync();
    else
      warp_sync();
  };
  CHECK_ERROR("divergent", run(1, 32, 0, diverge));
  CHECK_ERROR("deadlock", run(1, 32, 0, [] {
                if (lane_index() != 7) warp_sync();
              }));
}

TEST(warp_sync_orders_memory_and_shuffle_does_not) {
  const auto exchange = [](bool sync) {
    run(1, 32, 128, [=] {
      const uint32_t base = dynamic_smem_base();
      store_shared(base + 4 * lane_index(), lane_index());
      if (sync)
        warp_sync();
      else
        (void)shuffle(1, 0);
      (void)load_shared<uint32_t>(base + 4 * (31 - lane_index()));
    });
  };
  exchange(true);
  CHECK_ERROR("race", exchange(false));
}

TEST(setmaxnreg_budget) {
  const auto redistribute = [](bool enough) {
    emu::World world(1);
    world.launch({.block = 384, .registers_per_thread = 168, .body = [=] {
                    if (thread_index() < 128) {
                      if (enough)
                        setmaxnreg_dec<40>();
                      else
                        setmaxnreg_dec<48>();
                    } else {
                      setmaxnreg_inc<232>();
                    }
                  }});
    world.synchronize();
  };
  redistribute(true);
  CHECK_ERROR("deadlock", redistribute(false));
  CHECK_ERROR("setmaxnreg", run(1, 128, 0, [] { setmaxnreg_dec<128>(); }));
  CHECK_ERROR("setmaxnreg", run(1, 128, 0, [] { setmaxnreg_inc<32>(); }));
  CHECK_ERROR("setmaxnreg", run(1, 128, 0, [] {
                if (warp_index() == 1) setmaxnreg_dec<40>();
              }));
  CHECK_ERROR("launch", {
    emu::World world(1);
    world.launch({.block = 1024, .registers_per_thread = 168, .body = [] {}});
  });
}

}  // namespace test
