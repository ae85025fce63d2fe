// Thread-block clusters: a block's rank, the cluster's barrier, other blocks' shared memory.
#pragma once

#include "emu/ops.h"
#include "emu/ptx/memory.h"

namespace longcat_ops::ptx {

inline uint32_t cluster_rank() { return emu::cluster_rank(); }
inline uint32_t cluster_size() { return emu::cluster_size(); }
inline uint32_t cluster_index() { return emu::cluster_index(); }

inline void cluster_arrive_release(emu::Location where = emu::Location::current()) { emu::cluster_arrive(true, where); }
inline void cluster_arrive_relaxed(emu::Location where = emu::Location::current()) {
  emu::cluster_arrive(false, where);
}
inline void cluster_wait_acquire(emu::Location where = emu::Location::current()) { emu::cluster_wait(where); }
inline void cluster_sync(emu::Location where = emu::Location::current()) {
  emu::cluster_arrive(true, where);
  emu::cluster_wait(where);
}

inline uint32_t cluster_address(uint32_t addr, uint32_t rank, emu::Location where = emu::Location::current()) {
  return emu::cluster_address(addr, rank, where);
}

template <class T>
T load_shared_cluster(uint32_t addr, emu::Location where = emu::Location::current()) {
  static_assert(is_memory_type<T>);
  T v;
  emu::load_cluster(addr, &v, sizeof v, where);
  return v;
}
template <class T>
void store_shared_cluster(uint32_t addr, T v, emu::Location where = emu::Location::current()) {
  static_assert(is_memory_type<T>);
  emu::store_cluster(addr, &v, sizeof v, where);
}

// Strong operations of cluster scope: T is uint32_t, uint64_t or int32_t.
#define LC_EMU_CLUSTER_LOAD(name, order)                                  \
  template <class T>                                                      \
  T name(uint32_t addr, emu::Location where = emu::Location::current()) { \
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);                      \
    T v;                                                                  \
    emu::load_cluster_strong(addr, &v, sizeof v, order, where);           \
    return v;                                                             \
  }
LC_EMU_CLUSTER_LOAD(load_relaxed_cluster, emu::Order::kRelaxed)
LC_EMU_CLUSTER_LOAD(load_acquire_cluster, emu::Order::kAcquire)
#undef LC_EMU_CLUSTER_LOAD

#define LC_EMU_CLUSTER_STORE(name, order)                                         \
  template <class T>                                                              \
  void name(uint32_t addr, T v, emu::Location where = emu::Location::current()) { \
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);                              \
    emu::store_cluster_strong(addr, &v, sizeof v, order, where);                  \
  }
LC_EMU_CLUSTER_STORE(store_relaxed_cluster, emu::Order::kRelaxed)
LC_EMU_CLUSTER_STORE(store_release_cluster, emu::Order::kRelease)
#undef LC_EMU_CLUSTER_STORE

inline void red_add_relaxed_cluster(uint32_t addr, uint32_t v, emu::Location where = emu::Location::current()) {
  emu::atomic_add_cluster(addr, v, emu::Order::kRelaxed, where);
}
inline void red_add_release_cluster(uint32_t addr, uint32_t v, emu::Location where = emu::Location::current()) {
  emu::atomic_add_cluster(addr, v, emu::Order::kRelease, where);
}
inline uint32_t atomic_add_acq_rel_cluster(uint32_t addr, uint32_t v, emu::Location where = emu::Location::current()) {
  return emu::atomic_add_cluster(addr, v, emu::Order::kAcqRel, where);
}

template <class T>
void store_async(uint32_t addr, T v, uint32_t bar, emu::Location where = emu::Location::current()) {
  static_assert(is_memory_type<T> && sizeof(T) >= 4);
  emu::store_async(addr, &v, sizeof v, bar, where);
}

inline void fence_release_shared_cluster() { emu::fence_release_shared_cluster(); }
inline void fence_acquire_shared_cluster() { emu::fence_acquire_shared_cluster(); }

}  // namespace longcat_ops::ptx
