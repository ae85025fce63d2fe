// Planted bugs in clusters: the cluster barrier, distributed shared memory, remote mbarriers, multicast.
#include "cluster.h"
#include "planted.h"

namespace test {
namespace {

using namespace longcat_ops::ptx;

enum class Bug {
  kNone,
  // exchange
  kNoStartBarrier,
  kLocalBarrier,
  kRelaxedArrival,
  kCtaFence,
  kNoWait,
  kNoEndBarrier,
  kDoubleArrival,
  kMissingArrival,
  kDivergentArrival,
  kRankOutside,
  kPlainStoreToPeer,
  // push
  kArriveFirst,
  kWaitAtCtaScope,
  kReleaseAtCtaScope,
  kRelaxedRemoteArrival,
  kSharedFenceForRemoteStore,
  kNoProxyFence,
  kOwnProxyFence,
  kBarrierNotFenced,
  kBarrierAfterLocalSync,
  kNoTailWait,
  // async
  kAsyncAtCtaScope,
  kAsyncNoExpect,
  kAsyncOtherBarrier,
  kAsyncReadEarly,
  // ring
  kMaskOutside,
  kEarlyFree,
  kNoEmptyWait,
  kNoExpectInPeer,
  kFreesOwnOnly,
  kWrongBytes,
  kRingEndsEarly,
  kPeerGone,
};

uint32_t peer_rank() { return 1 - cluster_rank(); }

void init_barriers(uint32_t count, uint32_t barriers) {
  if (thread_index() != 0) return;
  for (uint32_t i = 0; i < barriers; ++i) mbarrier_init(dynamic_smem_base() + 8 * i, count);
  fence_mbarrier_init();
}
void start(uint32_t count, uint32_t barriers) {
  init_barriers(count, barriers);
  cluster_arrive_relaxed();
  cluster_wait_acquire();
}

// Each CTA writes its own words and reads its peer's after a barrier; then both end together.
void exchange(emu::World& world, Bug bug) {
  run_clusters(world, 2, 2, 64, [=] {
    const uint32_t i = thread_index(), peer = bug == Bug::kRankOutside ? 2 : peer_rank();
    store_shared(word(i), 100 * cluster_rank() + i);
    if (bug == Bug::kCtaFence) fence_acq_rel_cta();
    if (bug == Bug::kLocalBarrier) {
      sync_threads();
    } else if (bug == Bug::kMissingArrival && cluster_rank() == 1 && warp_index() == 1) {
      return named_barrier_sync(1, 64);
    } else if (bug == Bug::kDivergentArrival && lane_index() == 31) {
      warp_sync();
    } else if (bug != Bug::kNoStartBarrier) {
      if (bug == Bug::kRelaxedArrival || bug == Bug::kCtaFence)
        cluster_arrive_relaxed();
      else
        cluster_arrive_release();
      if (bug == Bug::kDoubleArrival) cluster_arrive_release();
      if (bug != Bug::kNoWait) cluster_wait_acquire();
    }
    if (bug == Bug::kPlainStoreToPeer) store_shared(cluster_address(word(i), peer), i);
    require(load_shared_cluster<uint32_t>(cluster_address(word(63 - i), peer)) == 100 * peer + 63 - i);
    if (bug == Bug::kNoWait) cluster_wait_acquire();
    if (bug != Bug::kNoEndBarrier) cluster_sync();
  });
}

// CTA 1 stores into CTA 0 and arrives at its mbarrier; CTA 0 copies the stored words to global memory.
void push(emu::World& world, Bug bug) {
  auto* out = world.alloc_array<uint32_t>(32, 0, "out");
  run_clusters(world, 1, 2, 32, [=] {
    const uint32_t bar = dynamic_smem_base(), i = thread_index();
    if (bug == Bug::kBarrierNotFenced) {
      if (i == 0) mbarrier_init(bar, 32);
      cluster_sync();
    } else if (bug == Bug::kBarrierAfterLocalSync) {
      cluster_sync();
      init_barriers(32, 1);
      sync_threads();
    } else {
      start(32, 1);
    }
    if (cluster_rank() == 1) {
      const uint32_t there = cluster_address(bar, 0);
      if (bug != Bug::kArriveFirst) store_shared_cluster(cluster_address(word(i), 0), i + 1);
      if (bug == Bug::kSharedFenceForRemoteStore) fence_release_shared_cluster();
      if (bug == Bug::kReleaseAtCtaScope)
        emu::mbarrier_arrive_cluster(there, 1, 0, emu::Order::kRelease, emu::Scope::kCta, emu::Location::current());
      else if (bug == Bug::kRelaxedRemoteArrival || bug == Bug::kSharedFenceForRemoteStore)
        mbarrier_arrive_relaxed_cluster(there);
      else
        mbarrier_arrive_cluster(there);
      if (bug == Bug::kArriveFirst) store_shared_cluster(cluster_address(word(i), 0), i + 1);
      if (bug == Bug::kOwnProxyFence) fence_proxy_async_shared();
      return;
    }
    if (bug == Bug::kNoTailWait) return;
    if (bug == Bug::kWaitAtCtaScope)
      mbarrier_wait(bar, 0);
    else
      mbarrier_wait_cluster(bar, 0);
    require(load_shared<uint32_t>(word(31 - i)) == 32 - i);
    if (bug != Bug::kNoProxyFence && bug != Bug::kOwnProxyFence) fence_proxy_async_shared();
    sync_threads();
    if (i != 0) return;
    bulk_store(out, word(0), 128);
    bulk_commit();
    bulk_wait_read<0>();
  });
}

// CTA 1 sends its words by st.async.
void async(emu::World& world, Bug bug) {
  run_clusters(world, 1, 2, 32, [=] {
    const uint32_t bar = dynamic_smem_base(), i = thread_index();
    start(1, 2);
    if (cluster_rank() == 1) {
      const uint32_t own = bug == Bug::kAsyncOtherBarrier ? 1 : 0;
      store_async(cluster_address(word(i), 0), i + 1, cluster_address(bar, own));
    } else {
      if (i == 0) mbarrier_arrive_expect_tx(bar, bug == Bug::kAsyncNoExpect ? 64 : 128);
      if (bug == Bug::kAsyncReadEarly) (void)load_shared<uint32_t>(word(31 - i));
      if (bug == Bug::kAsyncAtCtaScope)
        mbarrier_wait(bar, 0);
      else
        mbarrier_wait_cluster(bar, 0);
      require(load_shared<uint32_t>(word(31 - i)) == 32 - i);
    }
    cluster_sync();
  });
}

// CTA 0 fills a ring of two stages in both CTAs; every reader frees a stage by an arrival at CTA 0.
void ring(emu::World& world, Bug bug) {
  constexpr uint32_t kStages = 2, kSteps = 5;
  auto* data = world.alloc_array<uint32_t>(32 * kSteps, 0, "data", true);
  for (uint32_t i = 0; i < 32 * kSteps; ++i) data[i] = i;
  const TensorMap map = words_map(data, 32 * kSteps);
  run_clusters(world, 1, 2, 64, [=] {
    const uint32_t bars = dynamic_smem_base();
    if (thread_index() == 0) {
      for (uint32_t s = 0; s < kStages; ++s) {
        mbarrier_init(bars + 16 * s, 1);                                            // full
        mbarrier_init(bars + 16 * s + 8, bug == Bug::kFreesOwnOnly ? 32 : 2 * 32);  // empty
      }
      fence_mbarrier_init();
    }
    cluster_arrive_relaxed();
    cluster_wait_acquire();
    if (bug == Bug::kPeerGone && cluster_rank() == 1) return;
    for (uint32_t step = 0; step < kSteps; ++step) {
      const uint32_t s = step % kStages, parity = step / kStages % 2, full = bars + 16 * s, empty = full + 8;
      if (warp_index() == 0) {
        if (lane_index() != 0) continue;
        if (cluster_rank() == 0 && bug != Bug::kNoEmptyWait) mbarrier_wait_cluster(empty, parity ^ 1);
        if (cluster_rank() == 0 || bug != Bug::kNoExpectInPeer)
          mbarrier_arrive_expect_tx(full, bug == Bug::kWrongBytes ? 256 : 128);
        if (cluster_rank() == 0)
          tma_load_multicast(word(32 * s), &map, full, {int32_t(32 * step)}, bug == Bug::kMaskOutside ? 0b111 : 0b11);
        if (cluster_rank() == 1) mbarrier_wait(full, parity);
        continue;
      }
      if (bug == Bug::kRingEndsEarly && cluster_rank() == 1 && step == kSteps - 1) continue;
      if (bug == Bug::kEarlyFree) mbarrier_arrive_cluster(cluster_address(empty, 0));
      mbarrier_wait(full, parity);
      require(load_shared<uint32_t>(word(32 * s + lane_index())) == 32 * step + lane_index());
      if (bug == Bug::kEarlyFree || (bug == Bug::kFreesOwnOnly && cluster_rank() == 1)) continue;
      fence_release_shared_cluster();
      mbarrier_arrive_relaxed_cluster(cluster_address(empty, 0));
    }
    if (bug != Bug::kRingEndsEarly) cluster_sync();
  });
}

const PlantedBug<Bug> kPlanted[] = {
    {"no_start_barrier", exchange, Bug::kNoStartBarrier, {"cluster"}},
    {"local_barrier_for_remote_reads", exchange, Bug::kLocalBarrier, {"cluster"}},
    {"relaxed_cluster_arrival", exchange, Bug::kRelaxedArrival, {"race"}},
    {"cta_fence_before_relaxed_arrival", exchange, Bug::kCtaFence, {"race"}},
    {"no_cluster_wait", exchange, Bug::kNoWait, {"cluster"}},
    {"no_end_barrier", exchange, Bug::kNoEndBarrier, {"exit"}},
    {"double_cluster_arrival", exchange, Bug::kDoubleArrival, {"cluster"}},
    {"missing_cluster_arrival", exchange, Bug::kMissingArrival, {"deadlock"}},
    {"divergent_cluster_arrival", exchange, Bug::kDivergentArrival, {"deadlock"}},
    {"rank_outside_the_cluster", exchange, Bug::kRankOutside, {"cluster"}},
    {"cluster_address_in_st_shared_cta", exchange, Bug::kPlainStoreToPeer, {"out-of-bounds"}},
    {"arrive_before_remote_store", push, Bug::kArriveFirst, {"race", "uninitialised", "exit"}},
    {"wait_at_cta_scope", push, Bug::kWaitAtCtaScope, {"scope"}},
    {"release_at_cta_scope", push, Bug::kReleaseAtCtaScope, {"scope"}},
    {"relaxed_remote_arrival", push, Bug::kRelaxedRemoteArrival, {"race"}},
    {"own_memory_fence_for_remote_store", push, Bug::kSharedFenceForRemoteStore, {"race"}},
    {"no_proxy_fence", push, Bug::kNoProxyFence, {"proxy"}},
    {"proxy_fence_for_own_memory_only", push, Bug::kOwnProxyFence, {"proxy"}},
    {"mbarrier_init_not_fenced", push, Bug::kBarrierNotFenced, {"mbarrier"}},
    {"mbarrier_init_before_local_barrier", push, Bug::kBarrierAfterLocalSync, {"race", "mbarrier"}},
    {"end_before_remote_arrival", push, Bug::kNoTailWait, {"exit"}},
    {"async_store_waited_at_cta_scope", async, Bug::kAsyncAtCtaScope, {"scope"}},
    {"async_store_bytes_not_expected",
     async,
     Bug::kAsyncNoExpect,
     {"mbarrier", "deadlock", "uninitialised", kWrongValue}},
    {"async_store_with_own_mbarrier", async, Bug::kAsyncOtherBarrier, {"cluster"}},
    {"async_store_read_early", async, Bug::kAsyncReadEarly, {"race", "uninitialised"}},
    {"mask_outside_the_cluster", ring, Bug::kMaskOutside, {"cluster"}},
    {"stage_freed_early", ring, Bug::kEarlyFree, {"race", "mbarrier"}},
    {"no_wait_for_empty_stage", ring, Bug::kNoEmptyWait, {"race", "mbarrier"}},
    {"peer_expects_no_bytes", ring, Bug::kNoExpectInPeer, {"deadlock"}},
    {"peer_does_not_free", ring, Bug::kFreesOwnOnly, {"race", "mbarrier"}},
    {"too_many_bytes_expected", ring, Bug::kWrongBytes, {"deadlock"}},
    {"end_before_multicast_arrives", ring, Bug::kRingEndsEarly, {"exit", "deadlock"}},
    {"multicast_to_a_cta_that_ends", ring, Bug::kPeerGone, {"exit"}},
};

}  // namespace

TEST(planted_cluster) { CHECK_EQ(check_planted(kPlanted), ""); }
TEST(planted_cluster_kernels_without_bugs_over_50_seeds) { check_no_complaints(kPlanted, Bug::kNone, 50); }

}  // namespace test
