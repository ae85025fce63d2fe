// Indices of a thread, warp collectives, CTA barriers, programmatic dependent launch, register budget.
#pragma once

#include <bit>

#include "emu/ops.h"
#include "emu/ptx/types.h"

namespace longcat_ops::ptx {

inline uint32_t thread_index() { return emu::thread_index(); }
inline uint32_t block_index() { return emu::block_index(); }
inline uint32_t grid_size() { return emu::grid_size(); }
inline uint32_t lane_index() { return emu::thread_index() % 32; }
inline uint32_t warp_index() { return emu::thread_index() / 32; }
inline uint32_t dynamic_smem_base() { return emu::dynamic_smem_base(); }
inline uint64_t globaltimer_ns() { return emu::globaltimer_ns(); }
inline uint32_t sm_index() { return emu::sm_index(); }

inline void grid_dependency_wait(emu::Location where = emu::Location::current()) { emu::grid_dependency_wait(where); }
inline void grid_dependency_launch(emu::Location where = emu::Location::current()) {
  emu::grid_dependency_launch(where);
}

template <int N>
void setmaxnreg_inc(emu::Location where = emu::Location::current()) {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256);
  emu::set_max_registers(N, true, where);
}
template <int N>
void setmaxnreg_dec(emu::Location where = emu::Location::current()) {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256);
  emu::set_max_registers(N, false, where);
}

inline bool elect_one(emu::Location where = emu::Location::current()) { return emu::elect_one(where); }

template <class T>
T shuffle(T v, int src_lane, emu::Location where = emu::Location::current()) {
  static_assert(sizeof(T) == 4);
  return std::bit_cast<T>(emu::shuffle(std::bit_cast<uint32_t>(v), emu::Shuffle::kIndex, src_lane, where));
}
template <class T>
T shuffle_xor(T v, int mask, emu::Location where = emu::Location::current()) {
  static_assert(sizeof(T) == 4);
  return std::bit_cast<T>(emu::shuffle(std::bit_cast<uint32_t>(v), emu::Shuffle::kXor, mask, where));
}
template <class T>
T shuffle_up(T v, int delta, emu::Location where = emu::Location::current()) {
  static_assert(sizeof(T) == 4);
  return std::bit_cast<T>(emu::shuffle(std::bit_cast<uint32_t>(v), emu::Shuffle::kUp, delta, where));
}

inline uint32_t ballot(bool p, emu::Location where = emu::Location::current()) { return emu::ballot(p, where); }
inline bool any(bool p, emu::Location where = emu::Location::current()) { return emu::ballot(p, where) != 0; }
inline bool all(bool p, emu::Location where = emu::Location::current()) { return emu::ballot(p, where) == ~0u; }
inline uint32_t redux_max(uint32_t v, emu::Location where = emu::Location::current()) {
  return emu::redux(v, true, where);
}
inline uint32_t redux_min(uint32_t v, emu::Location where = emu::Location::current()) {
  return emu::redux(v, false, where);
}
inline uint32_t match_any(uint32_t v, emu::Location where = emu::Location::current()) {
  return emu::match_any(v, where);
}
inline uint32_t popcount(uint32_t mask) { return uint32_t(std::popcount(mask)); }
inline void warp_sync(emu::Location where = emu::Location::current()) { emu::warp_sync(where); }

inline void sync_threads(emu::Location where = emu::Location::current()) { emu::sync_threads(where); }
inline void named_barrier_sync(uint32_t id, uint32_t threads, emu::Location where = emu::Location::current()) {
  emu::named_barrier(id, threads, true, where);
}
inline void named_barrier_arrive(uint32_t id, uint32_t threads, emu::Location where = emu::Location::current()) {
  emu::named_barrier(id, threads, false, where);
}

// In a spin loop: continues once a strong value was written since this thread last read one.
inline void spin_pause(emu::Location where = emu::Location::current()) { emu::spin_pause(where); }

}  // namespace longcat_ops::ptx
