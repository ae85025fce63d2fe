// Macros and types that kernels are written with; the emulator has the same names in emu/ptx/types.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "ptx/operands.h"

#define LC_KERNEL __global__ void
#define LC_DEVICE __device__ __forceinline__
#define LC_GRID_CONSTANT const __grid_constant__
#define LC_LAUNCH_BOUNDS(threads, min_blocks) __launch_bounds__(threads, min_blocks)
// A device variable, one per file; the host has only its address.
#define LC_DEVICE_VARIABLE static __device__
#define LC_UNROLL _Pragma("unroll")
#define LC_NO_UNROLL _Pragma("unroll 1")

namespace longcat_ops::ptx {

// The bytes of a CUtensorMap, without cuda.h. Passed to kernels as LC_GRID_CONSTANT.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};
static_assert(sizeof(TensorMap) == 128);

namespace detail {

// ld/st with a .global qualifier take global addresses; converting a pointer to one costs nothing.
LC_DEVICE uint64_t global_address(const void* p) { return __cvta_generic_to_global(p); }

template <class To, class From>
LC_DEVICE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From) && std::is_trivially_copyable_v<To> && std::is_trivially_copyable_v<From>);
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// Types that the ISA loads and stores in one piece.
template <class T>
inline constexpr bool is_atomic_type =
    (std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8)) || std::is_same_v<T, Vec8>;

}  // namespace detail
}  // namespace longcat_ops::ptx
