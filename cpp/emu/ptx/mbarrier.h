// mbarriers in shared::cta; arrivals also in shared::cluster.
#pragma once

#include "emu/ops.h"
#include "emu/ptx/types.h"

namespace longcat_ops::ptx {

inline void mbarrier_init(uint32_t bar, uint32_t count, emu::Location where = emu::Location::current()) {
  emu::mbarrier_init(bar, count, where);
}
inline void mbarrier_arrive(uint32_t bar, emu::Location where = emu::Location::current()) {
  emu::mbarrier_arrive(bar, 1, 0, where);
}
inline void mbarrier_arrive_n(uint32_t bar, uint32_t count, emu::Location where = emu::Location::current()) {
  emu::mbarrier_arrive(bar, count, 0, where);
}
inline void mbarrier_expect_tx(uint32_t bar, uint32_t bytes, emu::Location where = emu::Location::current()) {
  emu::mbarrier_arrive(bar, 0, bytes, where);
}
inline void mbarrier_arrive_expect_tx(uint32_t bar, uint32_t bytes, emu::Location where = emu::Location::current()) {
  emu::mbarrier_arrive(bar, 1, bytes, where);
}
// try_wait may block for a while and may fail spuriously; test_wait never blocks.
inline bool mbarrier_try_wait(uint32_t bar, uint32_t parity, emu::Location where = emu::Location::current()) {
  return emu::mbarrier_try_wait(bar, parity, emu::Order::kAcquire, emu::Scope::kCta, where);
}
inline bool mbarrier_test_wait(uint32_t bar, uint32_t parity, emu::Location where = emu::Location::current()) {
  return emu::mbarrier_test_wait(bar, parity, emu::Order::kAcquire, emu::Scope::kCta, where);
}
inline void mbarrier_wait(uint32_t bar, uint32_t parity, emu::Location where = emu::Location::current()) {
  emu::mbarrier_wait(bar, parity, emu::Order::kAcquire, emu::Scope::kCta, where);
}

inline void mbarrier_arrive_cluster(uint32_t bar, emu::Location where = emu::Location::current()) {
  emu::mbarrier_arrive_cluster(bar, 1, 0, emu::Order::kRelease, emu::Scope::kCluster, where);
}
inline void mbarrier_arrive_relaxed_cluster(uint32_t bar, emu::Location where = emu::Location::current()) {
  emu::mbarrier_arrive_cluster(bar, 1, 0, emu::Order::kRelaxed, emu::Scope::kCluster, where);
}
inline void mbarrier_expect_tx_cluster(uint32_t bar, uint32_t bytes, emu::Location where = emu::Location::current()) {
  emu::mbarrier_arrive_cluster(bar, 0, bytes, emu::Order::kRelaxed, emu::Scope::kCluster, where);
}
inline void mbarrier_arrive_expect_tx_cluster(uint32_t bar, uint32_t bytes,
                                              emu::Location where = emu::Location::current()) {
  emu::mbarrier_arrive_cluster(bar, 1, bytes, emu::Order::kRelease, emu::Scope::kCluster, where);
}
inline bool mbarrier_try_wait_cluster(uint32_t bar, uint32_t parity, emu::Location where = emu::Location::current()) {
  return emu::mbarrier_try_wait(bar, parity, emu::Order::kAcquire, emu::Scope::kCluster, where);
}
inline bool mbarrier_test_wait_cluster(uint32_t bar, uint32_t parity, emu::Location where = emu::Location::current()) {
  return emu::mbarrier_test_wait(bar, parity, emu::Order::kAcquire, emu::Scope::kCluster, where);
}
inline void mbarrier_wait_cluster(uint32_t bar, uint32_t parity, emu::Location where = emu::Location::current()) {
  emu::mbarrier_wait(bar, parity, emu::Order::kAcquire, emu::Scope::kCluster, where);
}
inline bool mbarrier_try_wait_relaxed_cluster(uint32_t bar, uint32_t parity,
                                              emu::Location where = emu::Location::current()) {
  return emu::mbarrier_try_wait(bar, parity, emu::Order::kRelaxed, emu::Scope::kCluster, where);
}
inline void mbarrier_wait_relaxed_cluster(uint32_t bar, uint32_t parity,
                                          emu::Location where = emu::Location::current()) {
  emu::mbarrier_wait(bar, parity, emu::Order::kRelaxed, emu::Scope::kCluster, where);
}

}  // namespace longcat_ops::ptx
