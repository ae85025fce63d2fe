// Loads, stores, atomics and fences of the generic proxy.
#pragma once

#include <type_traits>

#include "emu/ops.h"
#include "emu/ptx/types.h"

namespace longcat_ops::ptx {

template <class T>
constexpr bool is_memory_type =
    std::is_trivially_copyable_v<T> && sizeof(T) <= 16 && (sizeof(T) & (sizeof(T) - 1)) == 0;

template <class T>
T load_shared(uint32_t addr, emu::Location where = emu::Location::current()) {
  static_assert(is_memory_type<T>);
  T v;
  emu::load_shared(addr, &v, sizeof v, where);
  return v;
}
template <class T>
void store_shared(uint32_t addr, T v, emu::Location where = emu::Location::current()) {
  static_assert(is_memory_type<T>);
  emu::store_shared(addr, &v, sizeof v, where);
}

template <class T>
T load_global(const T* p, emu::Location where = emu::Location::current()) {
  static_assert(is_memory_type<T>);
  T v;
  emu::load_global(p, &v, sizeof v, false, where);
  return v;
}
// For data that stays unwritten while the kernel runs.
template <class T>
T load_global_nc(const T* p, emu::Location where = emu::Location::current()) {
  static_assert(is_memory_type<T>);
  T v;
  emu::load_global(p, &v, sizeof v, true, where);
  return v;
}
inline void prefetch_global_l2(const void* p, emu::Location where = emu::Location::current()) {
  emu::prefetch_global(p, where);
}
template <class T>
void store_global(T* p, std::type_identity_t<T> v, emu::Location where = emu::Location::current()) {
  static_assert(is_memory_type<T>);
  emu::store_global(p, &v, sizeof v, where);
}

// Strong operations: T is uint32_t, uint64_t or int32_t; relaxed ones take Vec8 too.
template <class T>
constexpr bool is_atomic_type =
    (std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8)) || std::is_same_v<T, Vec8>;

#define LC_EMU_STRONG_LOAD(name, order, scope)                             \
  template <class T>                                                       \
  T name(const T* p, emu::Location where = emu::Location::current()) {     \
    static_assert(is_atomic_type<T>);                                      \
    static_assert(std::is_integral_v<T> || order == emu::Order::kRelaxed); \
    T v;                                                                   \
    emu::load_strong(p, &v, sizeof v, order, scope, where);                \
    return v;                                                              \
  }
LC_EMU_STRONG_LOAD(load_relaxed_gpu, emu::Order::kRelaxed, emu::Scope::kGpu)
LC_EMU_STRONG_LOAD(load_relaxed_sys, emu::Order::kRelaxed, emu::Scope::kSys)
LC_EMU_STRONG_LOAD(load_acquire_gpu, emu::Order::kAcquire, emu::Scope::kGpu)
LC_EMU_STRONG_LOAD(load_acquire_sys, emu::Order::kAcquire, emu::Scope::kSys)
#undef LC_EMU_STRONG_LOAD

#define LC_EMU_STRONG_STORE(name, order, scope)                                                \
  template <class T>                                                                           \
  void name(T* p, std::type_identity_t<T> v, emu::Location where = emu::Location::current()) { \
    static_assert(is_atomic_type<T>);                                                          \
    static_assert(std::is_integral_v<T> || order == emu::Order::kRelaxed);                     \
    emu::store_strong(p, &v, sizeof v, order, scope, where);                                   \
  }
LC_EMU_STRONG_STORE(store_relaxed_gpu, emu::Order::kRelaxed, emu::Scope::kGpu)
LC_EMU_STRONG_STORE(store_relaxed_sys, emu::Order::kRelaxed, emu::Scope::kSys)
LC_EMU_STRONG_STORE(store_release_gpu, emu::Order::kRelease, emu::Scope::kGpu)
LC_EMU_STRONG_STORE(store_release_sys, emu::Order::kRelease, emu::Scope::kSys)
#undef LC_EMU_STRONG_STORE

// Two words of 8 bytes, each in one piece, seen in any order and one without the other.
inline Vec16 load_relaxed_sys_two_words(const Vec16* p, emu::Location where = emu::Location::current()) {
  Vec16 v;
  emu::load_strong(p, &v, sizeof v, emu::Order::kRelaxed, emu::Scope::kSys, where);
  return v;
}
inline void store_relaxed_sys_two_words(Vec16* p, Vec16 v, emu::Location where = emu::Location::current()) {
  emu::store_strong(p, &v, sizeof v, emu::Order::kRelaxed, emu::Scope::kSys, where);
}

inline void red_add_relaxed_gpu(uint32_t* p, uint32_t v, emu::Location where = emu::Location::current()) {
  emu::atomic_add(p, v, emu::Order::kRelaxed, emu::Scope::kGpu, where);
}
inline void red_add_release_gpu(uint32_t* p, uint32_t v, emu::Location where = emu::Location::current()) {
  emu::atomic_add(p, v, emu::Order::kRelease, emu::Scope::kGpu, where);
}
inline void red_add_relaxed_sys(uint32_t* p, uint32_t v, emu::Location where = emu::Location::current()) {
  emu::atomic_add(p, v, emu::Order::kRelaxed, emu::Scope::kSys, where);
}
inline void red_add_release_sys(uint32_t* p, uint32_t v, emu::Location where = emu::Location::current()) {
  emu::atomic_add(p, v, emu::Order::kRelease, emu::Scope::kSys, where);
}
inline uint32_t atomic_add_acq_rel_gpu(uint32_t* p, uint32_t v, emu::Location where = emu::Location::current()) {
  return emu::atomic_add(p, v, emu::Order::kAcqRel, emu::Scope::kGpu, where);
}

inline void fence_acq_rel_cta(emu::Location where = emu::Location::current()) {
  emu::fence_acq_rel(emu::Scope::kCta, where);
}
inline void fence_acq_rel_cluster(emu::Location where = emu::Location::current()) {
  emu::fence_acq_rel(emu::Scope::kCluster, where);
}
inline void fence_acq_rel_gpu(emu::Location where = emu::Location::current()) {
  emu::fence_acq_rel(emu::Scope::kGpu, where);
}
inline void fence_acq_rel_sys(emu::Location where = emu::Location::current()) {
  emu::fence_acq_rel(emu::Scope::kSys, where);
}

inline void fence_proxy_async_shared() { emu::fence_proxy_async(true, false, false); }
inline void fence_proxy_async_shared_cluster() { emu::fence_proxy_async(true, true, false); }
inline void fence_proxy_async_global() { emu::fence_proxy_async(false, false, true); }
inline void fence_proxy_async() { emu::fence_proxy_async(true, true, true); }
inline void fence_proxy_alias(emu::Location where = emu::Location::current()) { emu::fence_proxy_alias(where); }
inline void fence_mbarrier_init() { emu::fence_mbarrier_init(); }

}  // namespace longcat_ops::ptx
