// Thread-block clusters: flags, mbarriers and copies across CTAs.
#include "cluster.h"

namespace test {

using namespace longcat_ops::ptx;

TEST(cluster_strong_operations) {
  run_clusters(4, 32, [] {
    const uint32_t own = dynamic_smem_base();
    if (thread_index() < 8) store_shared(own + 4 * thread_index(), 0u);
    cluster_sync();
    const uint32_t sum = cluster_address(own, 0), ticket = sum + 4, turn = sum + 8, wide = sum + 16;
    red_add_relaxed_cluster(sum, 1);
    const uint32_t mine = atomic_add_acq_rel_cluster(ticket, 1);
    while (load_acquire_cluster<uint32_t>(turn) != mine) spin_pause();
    store_shared_cluster(sum + 24, mine);  // one thread at a time
    if (mine == 127) store_release_cluster(wide, uint64_t{5} << 32);
    store_release_cluster(turn, mine + 1);
    cluster_sync();
    require(load_relaxed_cluster<uint32_t>(sum) == 128);
    require(load_relaxed_cluster<uint64_t>(wide) == uint64_t{5} << 32);
    require(load_shared_cluster<uint32_t>(sum + 24) == 127);
    cluster_sync();
  });
}

TEST(cluster_remote_arrivals) {
  // All CTAs send a word to CTA 0 and arrive there.
  run_clusters(4, 32, [] {
    const uint32_t bar = shared_barrier(4 * 32);
    const uint32_t to = cluster_rank() * 32 + thread_index();
    store_shared_cluster(cluster_address(word(to), 0), to);
    mbarrier_arrive_cluster(cluster_address(bar, 0));
    if (cluster_rank() != 0) return;
    mbarrier_wait_cluster(bar, 0);
    for (uint32_t i = 0; i < 4; ++i)
      require(load_shared<uint32_t>(word(32 * i + 31 - thread_index())) % 32 == 31 - thread_index());
  });
}

TEST(cluster_remote_expect_tx_and_async_stores) {
  run_clusters(2, 32, [] {
    const uint32_t bar = shared_barrier(1), peer = 1 - cluster_rank();
    const uint32_t there = cluster_address(bar, peer);
    if (thread_index() == 0) mbarrier_arrive_expect_tx_cluster(there, 32 * (4 + 8 + 16));
    const uint32_t i = thread_index();
    store_async(cluster_address(word(i), peer), 5 * i, there);
    store_async(cluster_address(word(64 + 2 * i), peer), Vec8{i, i + 1}, there);
    store_async(cluster_address(word(256 + 4 * i), peer), Vec16{i, i, i, i + 3}, there);
    mbarrier_wait_cluster(bar, 0);
    require(load_shared<uint32_t>(word(31 - i)) == 5 * (31 - i));
    require(load_shared<uint32_t>(word(65 + 2 * i)) == i + 1);
    require(load_shared<uint32_t>(word(256 + 4 * i + 3)) == i + 3);
    cluster_sync();
  });
}

TEST(cluster_multicast_copies) {
  for (const emu::Policy policy : kPolicies)
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      emu::World world(seed, policy);
      auto* data = world.alloc_array<uint32_t>(1024, 0, "data", true);
      for (uint32_t i = 0; i < 1024; ++i) data[i] = i;
      const TensorMap map{.base = reinterpret_cast<uint8_t*>(data),
                          .rank = 2,
                          .element_size = 4,
                          .sizes = {32, 32},
                          .strides = {4, 128},
                          .box = {32, 4},
                          .swizzle = Swizzle::k128B};
      const TensorMap words = words_map(data, 1024, 16);
      // CTAs 1 and 3 get a box from CTA 0 and 64 bytes from CTA 2; both count on the same mbarrier.
      run_clusters(world, 2, 4, 32, [=] {
        const uint32_t bar = shared_barrier(1), tile = dynamic_smem_base() + 1024, line = tile + 1024;
        if (thread_index() == 0) {
          if (cluster_rank() % 2 == 1) mbarrier_arrive_expect_tx(bar, 512 + 64);
          if (cluster_rank() == 0) tma_load_multicast(tile, &map, bar, {0, 2}, 0b1010);
          if (cluster_rank() == 2) tma_load_multicast(line, &words, bar, {512}, 0b1010);
        }
        if (cluster_rank() % 2 == 1) {
          mbarrier_wait(bar, 0);
          for (uint32_t row = 0; row < 4; ++row) {
            const uint32_t at = tile + 128 * row + ((4 * thread_index()) ^ (16 * row));
            require(load_shared<uint32_t>(at) == 32 * (2 + row) + thread_index());
          }
          require(load_shared<uint32_t>(line + 4 * (thread_index() % 16)) == 512 + thread_index() % 16);
        }
        cluster_sync();
      });
    }
}

TEST(cluster_wgmma_reads_its_own_memory) {
  // A 64 x 32 and B 8 x 32 in e4m3, all 1 in CTA 0 and all 2 in CTA 1.
  run_clusters(2, 128, [] {
    const uint32_t a = dynamic_smem_base(), b = a + 64 * 32, value = cluster_rank() == 0 ? 0x38383838 : 0x40404040;
    for (uint32_t at = 4 * thread_index(); at < 72 * 32; at += 4 * 128) store_shared(a + at, value);
    fence_proxy_async_shared();
    sync_threads();
    float acc[4];
    wgmma_fence();
    wgmma_e4m3<8>(acc, make_descriptor(a, 128, 256, Swizzle::kNone), make_descriptor(b, 128, 256, Swizzle::kNone),
                  false);
    wgmma_commit();
    wgmma_wait_for<0>(acc);
    for (const float x : acc) require(x == (cluster_rank() == 0 ? 32 : 128));
  });
}

// A ring of stages that CTA 0 fills in both CTAs; each CTA frees a stage by an arrival at CTA 0.
enum class Free { kRelease, kSharedFence, kRelaxed };
enum class Wait { kAcquire, kSharedFence, kRelaxed };

static void ring(Free how, Wait wait, uint64_t seed, emu::Policy policy) {
  constexpr uint32_t kStages = 2, kSteps = 6;
  emu::World world(seed, policy);
  auto* data = world.alloc_array<uint32_t>(32 * kSteps, 0, "data", true);
  for (uint32_t i = 0; i < 32 * kSteps; ++i) data[i] = i;
  const TensorMap map = words_map(data, 32 * kSteps);
  run_clusters(world, 1, 2, 64, [=] {
    const uint32_t bars = dynamic_smem_base();
    const auto full = [=](uint32_t s) { return bars + 16 * s; };
    const auto empty = [=](uint32_t s) { return bars + 16 * s + 8; };
    if (thread_index() == 0) {
      for (uint32_t s = 0; s < kStages; ++s) {
        mbarrier_init(full(s), 1);
        mbarrier_init(empty(s), 2 * 32);
      }
      fence_mbarrier_init();
    }
    cluster_arrive_relaxed();
    cluster_wait_acquire();
    for (uint32_t step = 0; step < kSteps; ++step) {
      const uint32_t s = step % kStages, parity = step / kStages % 2;
      if (warp_index() == 0) {
        if (lane_index() != 0) continue;
        if (cluster_rank() == 0 && wait == Wait::kAcquire) mbarrier_wait_cluster(empty(s), parity ^ 1);
        if (cluster_rank() == 0 && wait != Wait::kAcquire) mbarrier_wait_relaxed_cluster(empty(s), parity ^ 1);
        if (wait == Wait::kSharedFence) fence_acquire_shared_cluster();
        mbarrier_arrive_expect_tx(full(s), 128);
        if (cluster_rank() == 0) tma_load_multicast(word(32 * s), &map, full(s), {int32_t(32 * step)}, 0b11);
        if (cluster_rank() == 1) mbarrier_wait(full(s), parity);  // else it would run ahead of the phases
        continue;
      }
      mbarrier_wait(full(s), parity);
      require(load_shared<uint32_t>(word(32 * s + lane_index())) == 32 * step + lane_index());
      if (how == Free::kSharedFence) fence_release_shared_cluster();
      if (how == Free::kRelease)
        mbarrier_arrive_cluster(cluster_address(empty(s), 0));
      else
        mbarrier_arrive_relaxed_cluster(cluster_address(empty(s), 0));
    }
    cluster_sync();
  });
}

TEST(cluster_multicast_ring) {
  for (const emu::Policy policy : kPolicies)
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      for (const Wait wait : {Wait::kAcquire, Wait::kSharedFence}) {
        ring(Free::kRelease, wait, seed, policy);
        ring(Free::kSharedFence, wait, seed, policy);
        CHECK_ERROR("race", ring(Free::kRelaxed, wait, seed, policy));
      }
      CHECK_ERROR("race", ring(Free::kRelease, Wait::kRelaxed, seed, policy));
      CHECK_ERROR("race", ring(Free::kSharedFence, Wait::kRelaxed, seed, policy));
    }
}

// CTA 1 arrives `arrivals` times at CTA 0's mbarrier of two arrivals; CTA 0 waits only after all of them.
static void arrive_ahead(uint32_t arrivals) {
  run_clusters(2, 32, [=] {
    const uint32_t bar = shared_barrier(2);
    if (cluster_rank() == 1 && thread_index() == 0)
      for (uint32_t i = 0; i < arrivals; ++i) mbarrier_arrive_cluster(cluster_address(bar, 0));
    cluster_sync();
    if (cluster_rank() == 0) mbarrier_wait_cluster(bar, 0);
    cluster_sync();
  });
}

TEST(cluster_arrivals_ahead_of_the_waits) {
  arrive_ahead(2);
  arrive_ahead(3);
  CHECK_ERROR("mbarrier", arrive_ahead(4));
}

}  // namespace test
