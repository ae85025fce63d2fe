// Planted bugs in programmatic dependent launch, and in the scopes and orders of flags in global memory.
#include "planted.h"

namespace test {
namespace {

using namespace longcat_ops::ptx;

enum class Bug {
  kNone,
  // dependent
  kNoWait,
  kReadBeforeWait,
  kOneThreadWaits,
  kCachedReadBeforeWait,
  kCopyBeforeWait,
  kTriggerBeforeDataNoWait,
  kOverwriteInputBeforeWait,
  kOverwriteOutputBeforeWait,
  kStoreWaitsForRead,
  kMiddleDoesNotWait,
  // flag
  kRelaxedStore,
  kCtaFenceBeforeStore,
  kClusterFenceBeforeStore,
  kClusterFenceAfterLoad,
  kRelaxedLoad,
  kCtaFenceAfterLoad,
  kFenceAfterStore,
  kFenceBeforeLoad,
  kOneThreadReleases,
  kOneThreadAcquires,
  kDataAfterFlag,
  kNoReadingProxyFence,
  // devices
  kGpuRelease,
  kGpuFence,
  kGpuAcquire,
  // local flag
  kLocalRelaxed,
  kLocalFenceAtCtaScope,
  kOtherCluster,
};

constexpr uint32_t kCount = 128;

uint32_t global_index() { return block_index() * 64 + thread_index(); }

// Three kernels, each of which may start once the previous one has triggered: b = a + 1; c = b + 1, a = 0; d = c + b.
void dependent(emu::World& world, Bug bug) {
  auto* a = world.alloc_array<uint32_t>(kCount, 0, "a", true);
  auto* b = world.alloc_array<uint32_t>(kCount, 0, "b");
  auto* c = world.alloc_array<uint32_t>(kCount, 0, "c");
  auto* d = world.alloc_array<uint32_t>(kCount, 0, "d");
  for (uint32_t i = 0; i < kCount; ++i) a[i] = i;
  world.launch({.grid = 2, .block = 64, .body = [=] {
                  const uint32_t i = global_index();
                  grid_dependency_launch();
                  sync_threads();
                  store_global(b + i, load_global(a + i) + 1);
                }});
  world.launch({.grid = 2, .block = 64, .smem_bytes = 1024, .dependent_launch = true, .body = [=] {
                  const uint32_t i = global_index(), j = kCount - 1 - i, base = dynamic_smem_base();
                  if (bug == Bug::kOverwriteInputBeforeWait) store_global(a + j, 0);
                  if (bug == Bug::kOverwriteOutputBeforeWait) store_global(b + j, 0);
                  uint32_t early = 0;
                  if (bug == Bug::kReadBeforeWait) early = load_global(b + j);
                  if (bug == Bug::kCachedReadBeforeWait) early = load_global_nc(b + j);
                  if (bug == Bug::kCopyBeforeWait && thread_index() == 0) {
                    mbarrier_init(base, 1);
                    fence_mbarrier_init();
                    mbarrier_arrive_expect_tx(base, 256);
                    bulk_load(base + 512, b, 256, base);
                    mbarrier_wait(base, 0);
                  }
                  if (bug == Bug::kTriggerBeforeDataNoWait) grid_dependency_launch();
                  const bool skip = bug == Bug::kNoWait || bug == Bug::kMiddleDoesNotWait ||
                                    (bug == Bug::kOneThreadWaits && thread_index() != 0);
                  if (!skip) grid_dependency_wait();
                  if (bug == Bug::kMiddleDoesNotWait) {  // does not itself depend on the first kernel
                    store_global(c + i, i);
                    return grid_dependency_launch();
                  }
                  store_global(c + i, (early != 0 ? early : load_global(b + j)) + 1);
                  store_global(a + j, 0);
                  grid_dependency_launch();
                }});
  world.launch({.grid = 2, .block = 64, .dependent_launch = true, .body = [=] {
                  const uint32_t i = global_index(), j = kCount - 1 - i;
                  if (bug != Bug::kTriggerBeforeDataNoWait) grid_dependency_wait();
                  store_global(d + i, load_global(c + j) + load_global(b + i));
                }});
  world.synchronize();
  for (uint32_t i = 0; i < kCount; ++i)
    if (bug == Bug::kNone) CHECK_EQ(d[i], (i + 2) + (i + 1));
}

// A persistent kernel's output leaves by a bulk store; the dependent kernel overwrites it.
void dependent_store(emu::World& world, Bug bug) {
  auto* out = world.alloc_array<uint32_t>(64, 0, "out");
  world.launch({.block = 64, .smem_bytes = 1024, .body = [=] {
                  const uint32_t base = dynamic_smem_base();
                  store_shared(base + 4 * thread_index(), 1u);
                  fence_proxy_async_shared();
                  sync_threads();
                  grid_dependency_launch();
                  if (thread_index() != 0) return;
                  bulk_store(out, base, 256);
                  bulk_commit();
                  bulk_wait_read<0>();
                }});
  world.launch({.block = 64, .dependent_launch = true, .body = [=] {
                  if (bug != Bug::kStoreWaitsForRead) grid_dependency_wait();
                  store_global(out + thread_index(), 2);
                }});
  world.synchronize();
  for (uint32_t i = 0; i < 64; ++i) CHECK_EQ(out[i], 2u);
}

// All threads of CTA 0 write data; one raises a flag, by a store or by a fence and a relaxed store; CTA 1 waits for it
// likewise and reads, by loads and by a bulk copy.
void flag(emu::World& world, Bug bug) {
  auto* data = world.alloc_array<uint32_t>(64, 0, "data");
  auto* ready = world.alloc_array<uint32_t>(1, 0, "ready", true);
  *ready = 0;
  const bool by_fence = bug == Bug::kCtaFenceBeforeStore || bug == Bug::kClusterFenceBeforeStore ||
                        bug == Bug::kFenceAfterStore || bug == Bug::kRelaxedStore;
  const bool relaxed_load = bug == Bug::kRelaxedLoad || bug == Bug::kCtaFenceAfterLoad ||
                            bug == Bug::kClusterFenceAfterLoad || bug == Bug::kFenceBeforeLoad;
  world.launch({.grid = 2, .block = 64, .smem_bytes = 1024, .body = [=] {
                  const uint32_t i = thread_index(), base = dynamic_smem_base();
                  if (block_index() == 0) {
                    if (bug != Bug::kDataAfterFlag) store_global(data + i, i);
                    if (bug != Bug::kOneThreadReleases) sync_threads();
                    if (i == 0) {
                      if (bug == Bug::kCtaFenceBeforeStore) fence_acq_rel_cta();
                      if (bug == Bug::kClusterFenceBeforeStore) fence_acq_rel_cluster();
                      if (by_fence)
                        store_relaxed_gpu(ready, 1u);
                      else
                        store_release_gpu(ready, 1u);
                      if (bug == Bug::kFenceAfterStore) fence_acq_rel_gpu();
                    }
                    if (bug == Bug::kDataAfterFlag) store_global(data + i, i);
                    return;
                  }
                  if (i == 0) {
                    mbarrier_init(base, 1);
                    fence_mbarrier_init();
                    if (bug == Bug::kFenceBeforeLoad) fence_acq_rel_gpu();
                    while ((relaxed_load ? load_relaxed_gpu(ready) : load_acquire_gpu(ready)) == 0) spin_pause();
                    if (bug == Bug::kCtaFenceAfterLoad) fence_acq_rel_cta();
                    if (bug == Bug::kClusterFenceAfterLoad) fence_acq_rel_cluster();
                    if (bug != Bug::kNoReadingProxyFence) fence_proxy_async_global();
                    mbarrier_arrive_expect_tx(base, 256);
                    bulk_load(base + 512, data, 256, base);
                  }
                  if (bug != Bug::kOneThreadAcquires) sync_threads();
                  if (bug == Bug::kOneThreadAcquires && i != 0) {
                    (void)load_global(data + i);
                    return;
                  }
                  require(load_global(data + 63 - i) == 63 - i);
                  mbarrier_wait(base, 0);
                  require(load_shared<uint32_t>(base + 512 + 4 * i) == i);
                }});
  world.synchronize();
}

// The same handover from one device to another.
void devices(emu::World& world, Bug bug) {
  auto* data = world.alloc_array<uint32_t>(1, 0, "data");
  auto* ready = world.alloc_array<uint32_t>(1, 0, "ready", true);
  *ready = 0;
  world.make_peer_accessible(data);
  world.make_peer_accessible(ready);
  world.launch({.device = 0, .block = 1, .body = [=] {
                  store_global(data, 7);
                  if (bug == Bug::kGpuFence) fence_acq_rel_gpu();
                  if (bug == Bug::kGpuFence)
                    store_relaxed_sys(ready, 1u);
                  else if (bug == Bug::kGpuRelease)
                    store_release_gpu(ready, 1u);
                  else
                    store_release_sys(ready, 1u);
                }});
  world.launch({.device = 1, .block = 1, .body = [=] {
                  while ((bug == Bug::kGpuAcquire ? load_acquire_gpu(ready) : load_acquire_sys(ready)) == 0)
                    spin_pause();
                  require(load_global(data) == 7);
                }});
  world.synchronize();
}

// Four CTAs count in the first one's shared memory, a flag of cluster scope. It does not order another cluster's data.
void cluster_flag(emu::World& world, Bug bug) {
  auto* data = world.alloc_array<uint32_t>(8, 0, "data");
  auto* ready = world.alloc_array<uint32_t>(1, 0, "ready", true);
  *ready = 0;
  world.launch({.grid = 8, .block = 32, .cluster = 4, .smem_bytes = 1024, .registers_per_thread = 64, .body = [=] {
                  const uint32_t counter = dynamic_smem_base();
                  if (thread_index() == 0) store_shared(counter, 0u);
                  cluster_sync();
                  if (thread_index() == 0) {
                    store_global(data + block_index(), block_index());
                    const uint32_t first = cluster_address(counter, 0);
                    if (bug == Bug::kLocalFenceAtCtaScope) fence_acq_rel_cta();
                    if (bug == Bug::kLocalRelaxed || bug == Bug::kLocalFenceAtCtaScope)
                      red_add_relaxed_cluster(first, 1);
                    else
                      red_add_release_cluster(first, 1);
                    while (load_acquire_cluster<uint32_t>(first) < 4) spin_pause();
                    for (uint32_t i = 0; i < 4; ++i)
                      require(load_global(data + 4 * cluster_index() + i) == 4 * cluster_index() + i);
                    // One cluster signals the other: the fence needs a wider scope than the cluster.
                    if (block_index() == 0) {
                      if (bug == Bug::kOtherCluster)
                        fence_acq_rel_cluster();
                      else
                        fence_acq_rel_gpu();
                      store_relaxed_gpu(ready, 1u);
                    } else if (block_index() == 4) {
                      while (load_acquire_gpu(ready) == 0) spin_pause();
                      require(load_global(data + 3) == 3);
                    }
                  }
                  cluster_sync();
                }});
  world.synchronize();
}

const PlantedBug<Bug> kPlanted[] = {
    {"pdl_no_wait", dependent, Bug::kNoWait, {"race", "uninitialised"}},
    {"pdl_read_before_wait", dependent, Bug::kReadBeforeWait, {"race", "uninitialised"}},
    {"pdl_one_thread_waits", dependent, Bug::kOneThreadWaits, {"race", "uninitialised"}},
    {"pdl_cached_read_before_wait", dependent, Bug::kCachedReadBeforeWait, {"race", "uninitialised", "read-only"}},
    {"pdl_copy_before_wait", dependent, Bug::kCopyBeforeWait, {"race", "uninitialised", "proxy"}},
    {"pdl_trigger_before_data_unwaited", dependent, Bug::kTriggerBeforeDataNoWait, {"race", "uninitialised"}},
    {"pdl_input_overwritten_before_wait", dependent, Bug::kOverwriteInputBeforeWait, {"race"}},
    {"pdl_output_overwritten_before_wait", dependent, Bug::kOverwriteOutputBeforeWait, {"race"}},
    {"pdl_bulk_store_overwritten", dependent_store, Bug::kStoreWaitsForRead, {"race"}},
    {"pdl_middle_kernel_does_not_wait", dependent, Bug::kMiddleDoesNotWait, {"race", "uninitialised"}},
    {"flag_relaxed_store", flag, Bug::kRelaxedStore, {"race"}},
    {"flag_cta_fence_before_store", flag, Bug::kCtaFenceBeforeStore, {"scope"}},
    {"flag_cluster_fence_before_store", flag, Bug::kClusterFenceBeforeStore, {"scope"}},
    {"flag_relaxed_load", flag, Bug::kRelaxedLoad, {"race"}},
    {"flag_cta_fence_after_load", flag, Bug::kCtaFenceAfterLoad, {"race"}},
    {"flag_cluster_fence_after_load", flag, Bug::kClusterFenceAfterLoad, {"race"}},
    {"flag_fence_after_store", flag, Bug::kFenceAfterStore, {"race"}},
    {"flag_fence_before_load", flag, Bug::kFenceBeforeLoad, {"race"}},
    {"flag_one_thread_releases", flag, Bug::kOneThreadReleases, {"race", "uninitialised"}},
    {"flag_one_thread_acquires", flag, Bug::kOneThreadAcquires, {"race", "uninitialised"}},
    {"flag_before_data", flag, Bug::kDataAfterFlag, {"race", "uninitialised"}},
    {"flag_no_proxy_fence_of_reader", flag, Bug::kNoReadingProxyFence, {"proxy"}},
    {"device_release_at_gpu_scope", devices, Bug::kGpuRelease, {"scope"}},
    {"device_fence_at_gpu_scope", devices, Bug::kGpuFence, {"scope"}},
    {"device_acquire_at_gpu_scope", devices, Bug::kGpuAcquire, {"scope"}},
    {"cluster_flag_relaxed", cluster_flag, Bug::kLocalRelaxed, {"race"}},
    {"cluster_flag_cta_fence", cluster_flag, Bug::kLocalFenceAtCtaScope, {"scope"}},
    {"cluster_fence_for_other_cluster", cluster_flag, Bug::kOtherCluster, {"scope"}},
};

}  // namespace

TEST(planted_order) { CHECK_EQ(check_planted(kPlanted), ""); }
TEST(planted_order_kernels_without_bugs_over_50_seeds) { check_no_complaints(kPlanted, Bug::kNone, 50); }

}  // namespace test
