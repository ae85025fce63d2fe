// Thread-block clusters: launches, registers, addresses, the cluster barrier.
#include <string>

#include "cluster.h"
#include "launch/launch.h"

namespace test {

using namespace longcat_ops::ptx;

TEST(cluster_registers_and_addresses) {
  for (const uint32_t size : {1u, 2u, 4u, 8u, 16u})
    run_clusters(size, 32, [=] {
      require(cluster_size() == size && cluster_rank() == block_index() % size);
      require(cluster_index() == block_index() / size && grid_size() == 2 * size);
      require(cluster_address(word(5), cluster_rank()) == word(5));
      for (uint32_t a = 0; a < size; ++a)
        for (uint32_t b = 0; b < a; ++b) require(cluster_address(word(5), a) != cluster_address(word(5), b));
    });
}

TEST(cluster_ctas_are_resident_together) {
  emu::Settings settings;
  settings.max_resident_ctas = 3;  // clusters of 4 still run, one by one
  emu::World world(1, emu::Policy::kRandom, settings);
  auto* out = world.alloc_array<uint32_t>(12, 0, "out");
  run_clusters(world, 3, 4, 32, [=] {
    cluster_sync();
    if (thread_index() == 0) store_global(out + block_index(), cluster_index());
    cluster_sync();
  });
  for (uint32_t i = 0; i < 12; ++i) CHECK_EQ(out[i], i / 4);
}

TEST(cluster_launch_errors) {
  const auto launch = [](uint32_t grid, uint32_t cluster) {
    emu::World world(1);
    world.launch({.grid = grid, .block = 32, .cluster = cluster, .body = [] {}});
  };
  launch(32, 16);
  CHECK_ERROR("launch", launch(6, 4));
  CHECK_ERROR("launch", launch(6, 3));
  CHECK_ERROR("launch", launch(32, 32));
  CHECK_ERROR("launch", launch(1, 0));
}

TEST(cluster_launch_config_is_checked) {
  const auto status = [](int64_t grid, int cluster) {
    const longcat_ops::LaunchConfig config{.name = "op", .grid = grid, .block = 32, .cluster = cluster};
    return longcat_ops::check_grid(config) == LC_OK ? "" : std::string(lc_last_error());
  };
  for (const int cluster : {1, 2, 4, 8, 16}) CHECK_EQ(status(48, cluster), "");
  CHECK_EQ(status(48, 3), "op: a cluster of 3 thread blocks, expected 1, 2, 4, 8 or 16");
  CHECK_EQ(status(48, 32), "op: a cluster of 32 thread blocks, expected 1, 2, 4, 8 or 16");
  CHECK_EQ(status(48, 0), "op: a cluster of 0 thread blocks, expected 1, 2, 4, 8 or 16");
  CHECK_EQ(status(50, 4), "op: 50 thread blocks, expected a multiple of the cluster of 4");
}

TEST(cluster_barrier_orders_shared_memory) {
  for (const uint32_t size : {2u, 4u, 16u})
    run_clusters(size, 64, [=] {
      const uint32_t i = thread_index();
      store_shared(word(i), 100 * cluster_rank() + i);
      cluster_arrive_release();
      cluster_wait_acquire();
      const uint32_t peer = (cluster_rank() + 1) % size;
      require(load_shared_cluster<uint32_t>(cluster_address(word(63 - i), peer)) == 100 * peer + 63 - i);
      cluster_sync();
      store_shared_cluster(cluster_address(word(i), peer), 7 * cluster_rank() + i);
      cluster_sync();
      const uint32_t writer = (cluster_rank() + size - 1) % size;
      require(load_shared<uint32_t>(word(63 - i)) == 7 * writer + 63 - i);
    });
}

TEST(cluster_barrier_does_not_wait_for_threads_that_ended) {
  run_clusters(2, 64, [] {
    if (warp_index() == 1) return;
    cluster_sync();
  });
}

TEST(cluster_relaxed_arrival_with_a_fence) {
  const auto exchange = [](bool wide) {
    run_clusters(2, 32, [=] {
      store_shared(word(thread_index()), thread_index());
      if (wide)
        fence_acq_rel_cluster();
      else
        fence_acq_rel_cta();
      cluster_arrive_relaxed();
      cluster_wait_acquire();
      (void)load_shared_cluster<uint32_t>(cluster_address(word(3), 1 - cluster_rank()));
      cluster_sync();
    });
  };
  exchange(true);
  CHECK_ERROR("race", exchange(false));
}

TEST(cluster_barrier_misuse) {
  CHECK_ERROR("cluster", run_clusters(2, 32, [] {
                cluster_arrive_release();
                cluster_arrive_release();
              }));
  CHECK_ERROR("cluster", run_clusters(2, 32, [] { cluster_wait_acquire(); }));
  CHECK_ERROR("cluster", run_clusters(2, 32, [] { (void)cluster_address(word(0), 2); }));
  CHECK_ERROR("out-of-bounds", run_clusters(2, 32, [] {
                cluster_sync();
                store_shared(cluster_address(word(0), 1 - cluster_rank()), 1u);
              }));
}

TEST(cluster_addresses_where_only_own_memory_is_allowed) {
  const auto with_peer = [](auto body) {
    run_clusters(2, 32, [=] {
      const uint32_t bar = shared_barrier(1);
      body(bar, cluster_address(bar, 1 - cluster_rank()));
    });
  };
  CHECK_ERROR("out-of-bounds", with_peer([](uint32_t, uint32_t there) { mbarrier_wait(there, 0); }));
  CHECK_ERROR("out-of-bounds", with_peer([](uint32_t, uint32_t there) { (void)mbarrier_try_wait_cluster(there, 0); }));
  CHECK_ERROR("out-of-bounds", with_peer([](uint32_t, uint32_t there) { mbarrier_arrive(there); }));
  CHECK_ERROR("out-of-bounds", with_peer([](uint32_t, uint32_t there) { mbarrier_init(there + 8, 1); }));
}

TEST(cluster_of_one) {
  run_clusters(1, 32, [] {
    const uint32_t bar = shared_barrier(32);
    store_shared_cluster(cluster_address(word(thread_index()), 0), thread_index());
    mbarrier_arrive_cluster(bar);
    mbarrier_wait(bar, 0);
    require(load_shared_cluster<uint32_t>(word(31 - thread_index())) == 31 - thread_index());
  });
  CHECK_ERROR("cluster", run_clusters(1, 32, [] {
                const uint32_t bar = shared_barrier(1);
                store_async(word(0), 1u, bar);
              }));
}

TEST(cluster_deadlock_report_names_who_is_missing) {
  try {
    run_clusters(2, 64, [] {
      if (cluster_rank() == 1 && thread_index() >= 40)
        sync_threads();
      else
        cluster_sync();
    });
  } catch (const emu::Error& error) {
    CHECK_EQ(error.kind, std::string("deadlock"));
    CHECK(error.text.find("CTA 1: the cluster barrier, phase 0, lacks the arrival of 24 threads, the first is 40") !=
          std::string::npos);
    return;
  }
  CHECK(false);
}

}  // namespace test
