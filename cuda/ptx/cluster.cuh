// Thread-block clusters: a block's rank, the cluster's barrier, other blocks' shared memory. Plain loads and stores of
// shared::cluster are in memory.cuh, arrivals at other blocks' mbarriers in mbarrier.cuh, copies in tma.cuh.
// "memory" clobber: on everything that writes, orders memory or is strong. volatile: likewise, as in memory.cuh; ranks,
// sizes and addresses never change.
#pragma once

#include "ptx/types.cuh"

namespace longcat_ops::ptx {

// Clusters have one dimension, as grids do: block_index() is cluster_index() * cluster_size() + cluster_rank().
// https://docs.nvidia.com/cuda/parallel-thread-execution/#special-registers-cluster-ctarank
LC_DEVICE uint32_t cluster_rank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// https://docs.nvidia.com/cuda/parallel-thread-execution/#special-registers-cluster-nctarank
LC_DEVICE uint32_t cluster_size() {
  uint32_t size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
// https://docs.nvidia.com/cuda/parallel-thread-execution/#special-registers-clusterid
LC_DEVICE uint32_t cluster_index() {
  uint32_t index;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(index));
  return index;
}

// Every thread of the cluster that has not ended arrives once, then waits; code in between overlaps with the others'.
// Relaxed: orders only what an earlier fence covers, and fence_mbarrier_init() is one.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-barrier-cluster
LC_DEVICE void cluster_arrive_release() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
LC_DEVICE void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
LC_DEVICE void cluster_wait_acquire() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
LC_DEVICE void cluster_sync() {
  cluster_arrive_release();
  cluster_wait_acquire();
}

// The shared::cluster address, in block `rank` of the cluster, of what this block has at addr. A block must have
// started (a cluster barrier) before others touch its memory, and must not end before all of that is over.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-mapa
LC_DEVICE uint32_t cluster_address(uint32_t addr, uint32_t rank) {
  uint32_t mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(addr), "r"(rank));
  return mapped;
}

// The bodies of strong accesses at cluster scope: 4 or 8 bytes in one piece.
#define LC_PTX_CLUSTER_LOAD_BODY(OPCODE)                                                                \
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "a 32 or 64-bit integer"); \
  T v;                                                                                                  \
  if constexpr (sizeof(T) == 4) {                                                                       \
    asm volatile(OPCODE ".shared::cluster.b32 %0, [%1];" : "=r"(v) : "r"(addr) : "memory");             \
  } else {                                                                                              \
    asm volatile(OPCODE ".shared::cluster.b64 %0, [%1];" : "=l"(v) : "r"(addr) : "memory");             \
  }                                                                                                     \
  return v;

#define LC_PTX_CLUSTER_STORE_BODY(OPCODE)                                                               \
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "a 32 or 64-bit integer"); \
  if constexpr (sizeof(T) == 4) {                                                                       \
    asm volatile(OPCODE ".shared::cluster.b32 [%0], %1;" ::"r"(addr), "r"(v) : "memory");               \
  } else {                                                                                              \
    asm volatile(OPCODE ".shared::cluster.b64 [%0], %1;" ::"r"(addr), "l"(v) : "memory");               \
  }

// Strong loads of a word in the cluster's shared memory, this block's own included.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-ld
template <class T>
LC_DEVICE T load_relaxed_cluster(uint32_t addr) {
  LC_PTX_CLUSTER_LOAD_BODY("ld.relaxed.cluster")
}
template <class T>
LC_DEVICE T load_acquire_cluster(uint32_t addr) {
  LC_PTX_CLUSTER_LOAD_BODY("ld.acquire.cluster")
}

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-st
template <class T>
LC_DEVICE void store_relaxed_cluster(uint32_t addr, T v) {
  LC_PTX_CLUSTER_STORE_BODY("st.relaxed.cluster")
}
template <class T>
LC_DEVICE void store_release_cluster(uint32_t addr, T v){LC_PTX_CLUSTER_STORE_BODY("st.release.cluster")}
#undef LC_PTX_CLUSTER_LOAD_BODY
#undef LC_PTX_CLUSTER_STORE_BODY

// Atomic addition, without and with the old value.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-red
LC_DEVICE void red_add_relaxed_cluster(uint32_t addr, uint32_t v) {
  asm volatile("red.relaxed.cluster.shared::cluster.add.u32 [%0], %1;" ::"r"(addr), "r"(v) : "memory");
}
LC_DEVICE void red_add_release_cluster(uint32_t addr, uint32_t v) {
  asm volatile("red.release.cluster.shared::cluster.add.u32 [%0], %1;" ::"r"(addr), "r"(v) : "memory");
}
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-atom
LC_DEVICE uint32_t atomic_add_acq_rel_cluster(uint32_t addr, uint32_t v) {
  uint32_t old;
  asm volatile("atom.acq_rel.cluster.shared::cluster.add.u32 %0, [%1], %2;" : "=r"(old) : "r"(addr), "r"(v) : "memory");
  return old;
}

// A weak store of 4, 8 or 16 bytes that happens later and then counts its bytes on the mbarrier. The mbarrier lies in
// the same block as addr and is waited for at cluster scope. Only in clusters of more than one block. Generic proxy.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-st-async
template <class T>
LC_DEVICE void store_async(uint32_t addr, T v, uint32_t bar) {
#define LC_PTX_STORE_ASYNC "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes"
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "4, 8 or 16 bytes");
  if constexpr (sizeof(T) == 4) {
    asm volatile(LC_PTX_STORE_ASYNC ".b32 [%0], %1, [%2];" ::"r"(addr), "r"(detail::bits_as<uint32_t>(v)), "r"(bar)
                 : "memory");
  } else if constexpr (sizeof(T) == 8) {
    const Vec8 bits = detail::bits_as<Vec8>(v);
    asm volatile(LC_PTX_STORE_ASYNC ".v2.b32 [%0], {%1, %2}, [%3];" ::"r"(addr), "r"(bits.x), "r"(bits.y), "r"(bar)
                 : "memory");
  } else {
    const Vec16 bits = detail::bits_as<Vec16>(v);
    asm volatile(LC_PTX_STORE_ASYNC ".v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(addr), "r"(bits.x), "r"(bits.y),
                 "r"(bits.z), "r"(bits.w), "r"(bar)
                 : "memory");
  }
#undef LC_PTX_STORE_ASYNC
}

// Releases, with a relaxed arrival at another block's mbarrier after it, what this thread did to its own block's shared
// memory and nothing else. A full release at cluster scope also waits for global memory.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-membar
LC_DEVICE void fence_release_shared_cluster() {
  asm volatile("fence.release.sync_restrict::shared::cta.cluster;" ::: "memory");
}
// Its counterpart after a relaxed wait: orders this thread's accesses to the cluster's shared memory after what was
// released.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-membar
LC_DEVICE void fence_acquire_shared_cluster() {
  asm volatile("fence.acquire.sync_restrict::shared::cluster.cluster;" ::: "memory");
}

}  // namespace longcat_ops::ptx
