// Bulk and tensor copies, executed by the async proxy.
#pragma once

#include "emu/ops.h"
#include "emu/ptx/types.h"

namespace longcat_ops::ptx {

inline void prefetch_tensormap(const TensorMap*) {}

// No cache is modelled: a policy only has to be one that create_policy_* made.
inline uint64_t create_policy_evict_first() { return emu::kPolicyEvictFirst; }
inline uint64_t create_policy_evict_last() { return emu::kPolicyEvictLast; }

template <int R>
void tma_load(uint32_t dst, const TensorMap* map, uint32_t bar, const int32_t (&coord)[R],
              emu::Location where = emu::Location::current()) {
  static_assert(R >= 1 && R <= 5);
  emu::tma_load(dst, *map, bar, coord, R, where);
}
template <int R>
void tma_load(uint32_t dst, const TensorMap* map, uint32_t bar, const int32_t (&coord)[R], uint64_t policy,
              emu::Location where = emu::Location::current()) {
  emu::check_policy(policy, where);
  tma_load(dst, map, bar, coord, where);
}
template <int R>
void tma_load_multicast(uint32_t dst, const TensorMap* map, uint32_t bar, const int32_t (&coord)[R], uint16_t cta_mask,
                        emu::Location where = emu::Location::current()) {
  static_assert(R >= 1 && R <= 5);
  emu::tma_load_multicast(dst, *map, bar, coord, R, cta_mask, where);
}
template <int R>
void tma_load_multicast(uint32_t dst, const TensorMap* map, uint32_t bar, const int32_t (&coord)[R], uint16_t cta_mask,
                        uint64_t policy, emu::Location where = emu::Location::current()) {
  emu::check_policy(policy, where);
  tma_load_multicast(dst, map, bar, coord, cta_mask, where);
}
template <int R>
void tma_store(const TensorMap* map, uint32_t src, const int32_t (&coord)[R],
               emu::Location where = emu::Location::current()) {
  static_assert(R >= 1 && R <= 5);
  emu::tma_store(*map, src, coord, R, where);
}

inline void bulk_load(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar,
                      emu::Location where = emu::Location::current()) {
  emu::bulk_load(dst, src, bytes, bar, where);
}
inline void bulk_store(void* dst, uint32_t src, uint32_t bytes, emu::Location where = emu::Location::current()) {
  emu::bulk_store(dst, src, bytes, where);
}

inline void bulk_commit() { emu::bulk_commit(); }
template <int N>
void bulk_wait_read(emu::Location where = emu::Location::current()) {
  emu::bulk_wait(N, true, where);
}
template <int N>
void bulk_wait(emu::Location where = emu::Location::current()) {
  emu::bulk_wait(N, false, where);
}

}  // namespace longcat_ops::ptx
