// Calls every wrapper of cuda/ptx for clusters. Compiled, never run.
#include "ptx/ptx.cuh"

namespace longcat_ops {

LC_KERNEL LC_LAUNCH_BOUNDS(128, 1) cluster_kernel(uint32_t* out) {
  ptx::store_global(out, ptx::cluster_rank());
  ptx::store_global(out + 1, ptx::cluster_size());
  ptx::store_global(out + 2, ptx::cluster_index());
  ptx::store_global(out + 3, ptx::cluster_address(ptx::dynamic_smem_base(), 1));
  ptx::cluster_arrive_relaxed();
  ptx::cluster_wait_acquire();
  ptx::cluster_arrive_release();
  ptx::cluster_wait_acquire();
  ptx::cluster_sync();
}

template <class T>
LC_DEVICE void copy_cluster(uint32_t address, T* out) {
  ptx::store_global(out, ptx::load_shared_cluster<T>(address));
  ptx::store_shared_cluster(address + 16, ptx::load_global(out + 1));
}

LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) cluster_memory_kernel(uint32_t address, void* out) {
  copy_cluster(address, static_cast<uint8_t*>(out));
  copy_cluster(address, static_cast<uint16_t*>(out));
  copy_cluster(address, static_cast<float*>(out));
  copy_cluster(address, static_cast<ptx::Vec8*>(out));
  copy_cluster(address, static_cast<ptx::Vec16*>(out));
}

template <class T>
LC_DEVICE T strong_cluster(uint32_t address) {
  const T v = ptx::load_relaxed_cluster<T>(address) + ptx::load_acquire_cluster<T>(address + 8);
  ptx::store_relaxed_cluster(address + 16, v);
  ptx::store_release_cluster(address + 24, v);
  return v;
}

LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) cluster_strong_kernel(uint32_t address, uint64_t* out) {
  ptx::store_global(out, strong_cluster<uint32_t>(address) + strong_cluster<uint64_t>(address));
  if (!ptx::elect_one()) return;
  ptx::red_add_relaxed_cluster(address, 1);
  ptx::red_add_release_cluster(address, 1);
  ptx::store_global(out + 1, uint64_t{ptx::atomic_add_acq_rel_cluster(address, 1)});
}

LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) cluster_async_kernel(uint32_t address, uint32_t bar, ptx::Vec16 v) {
  ptx::store_async(address, v.x, bar);
  ptx::store_async(address + 8, ptx::Vec8{v.x, v.y}, bar);
  ptx::store_async(address + 16, v, bar);
}

LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) cluster_mbarrier_kernel(uint32_t* out, uint32_t bytes) {
  const uint32_t bar = ptx::dynamic_smem_base(), there = ptx::cluster_address(bar, 1);
  ptx::mbarrier_arrive_cluster(there);
  ptx::fence_release_shared_cluster();
  ptx::mbarrier_arrive_relaxed_cluster(there);
  ptx::mbarrier_arrive_expect_tx_cluster(there, bytes + 16);
  ptx::store_global(out, static_cast<uint32_t>(ptx::mbarrier_try_wait_cluster(bar, 1)));
  ptx::store_global(out + 1, static_cast<uint32_t>(ptx::mbarrier_test_wait_cluster(bar, 1)));
  ptx::mbarrier_wait_cluster(bar, 0);
  ptx::store_global(out + 2, static_cast<uint32_t>(ptx::mbarrier_try_wait_relaxed_cluster(bar, 1)));
  ptx::mbarrier_wait_relaxed_cluster(bar, 1);
  ptx::fence_acquire_shared_cluster();
  ptx::mbarrier_expect_tx_cluster(there, bytes);
  ptx::fence_proxy_async_shared_cluster();
}

template <int R>
LC_DEVICE void multicast_rank(const ptx::TensorMap* map, uint32_t smem, uint32_t bar, int32_t c, uint16_t mask) {
  int32_t coord[R];
  LC_UNROLL
  for (int i = 0; i < R; ++i) coord[i] = c + i;
  ptx::tma_load_multicast(smem, map, bar, coord, mask);
  ptx::tma_load_multicast(smem, map, bar, coord, mask, ptx::create_policy_evict_last());
}

LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) multicast_kernel(LC_GRID_CONSTANT ptx::TensorMap map, int32_t c, uint16_t mask) {
  const uint32_t bar = ptx::dynamic_smem_base(), smem = bar + 1024;
  if (!ptx::elect_one()) return;
  multicast_rank<1>(&map, smem, bar, c, mask);
  multicast_rank<2>(&map, smem, bar, c, mask);
  multicast_rank<3>(&map, smem, bar, c, mask);
  multicast_rank<4>(&map, smem, bar, c, mask);
  multicast_rank<5>(&map, smem, bar, c, mask);
}

}  // namespace longcat_ops
