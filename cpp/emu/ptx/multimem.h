// Operations on multicast addresses.
#pragma once

#include "emu/ops.h"
#include "emu/ptx/types.h"

namespace longcat_ops::ptx {

template <class T>
constexpr bool is_multimem_type = sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16;

#define LC_EMU_MULTIMEM_LOAD(name, reduction, order)                                \
  template <MultimemType TYPE, class T>                                             \
  T name(const T* mc, emu::Location where = emu::Location::current()) {             \
    static_assert(is_multimem_type<T>);                                             \
    static_assert(reduction == emu::Reduction::kAdd || TYPE != MultimemType::kF32); \
    T v;                                                                            \
    emu::multimem_load(mc, &v, sizeof v, TYPE, reduction, order, where);            \
    return v;                                                                       \
  }
LC_EMU_MULTIMEM_LOAD(multimem_load_add_weak, emu::Reduction::kAdd, emu::Order::kWeak)
LC_EMU_MULTIMEM_LOAD(multimem_load_add_relaxed_sys, emu::Reduction::kAdd, emu::Order::kRelaxed)
LC_EMU_MULTIMEM_LOAD(multimem_load_add_acquire_sys, emu::Reduction::kAdd, emu::Order::kAcquire)
LC_EMU_MULTIMEM_LOAD(multimem_load_min_relaxed_sys, emu::Reduction::kMin, emu::Order::kRelaxed)
LC_EMU_MULTIMEM_LOAD(multimem_load_max_relaxed_sys, emu::Reduction::kMax, emu::Order::kRelaxed)
#undef LC_EMU_MULTIMEM_LOAD

#define LC_EMU_MULTIMEM_STORE(name, order)                                                      \
  template <class T>                                                                            \
  void name(T* mc, std::type_identity_t<T> v, emu::Location where = emu::Location::current()) { \
    static_assert(is_multimem_type<T>);                                                         \
    emu::multimem_store(mc, &v, sizeof v, order, where);                                        \
  }
LC_EMU_MULTIMEM_STORE(multimem_store_weak, emu::Order::kWeak)
LC_EMU_MULTIMEM_STORE(multimem_store_relaxed_sys, emu::Order::kRelaxed)
LC_EMU_MULTIMEM_STORE(multimem_store_release_sys, emu::Order::kRelease)
#undef LC_EMU_MULTIMEM_STORE

#define LC_EMU_MULTIMEM_RED(name, order, scope)                                                 \
  template <class T>                                                                            \
  void name(T* mc, std::type_identity_t<T> v, emu::Location where = emu::Location::current()) { \
    static_assert(std::is_same_v<T, uint32_t> || std::is_same_v<T, uint64_t>);                  \
    emu::multimem_add(mc, &v, sizeof v, order, scope, where);                                   \
  }
LC_EMU_MULTIMEM_RED(multimem_red_add_relaxed_gpu, emu::Order::kRelaxed, emu::Scope::kGpu)
LC_EMU_MULTIMEM_RED(multimem_red_add_release_gpu, emu::Order::kRelease, emu::Scope::kGpu)
LC_EMU_MULTIMEM_RED(multimem_red_add_relaxed_sys, emu::Order::kRelaxed, emu::Scope::kSys)
LC_EMU_MULTIMEM_RED(multimem_red_add_release_sys, emu::Order::kRelease, emu::Scope::kSys)
#undef LC_EMU_MULTIMEM_RED

template <MultimemType TYPE>
void multimem_red_add_vector_relaxed_sys(Vec16* mc, Vec16 v, emu::Location where = emu::Location::current()) {
  emu::multimem_add(mc, &v, sizeof v, TYPE, emu::Order::kRelaxed, where);
}

}  // namespace longcat_ops::ptx
