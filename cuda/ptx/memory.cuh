// Loads, stores, reductions and fences.
// "memory" clobber: on everything that writes, is strong (relaxed, acquire, release) or is a fence.
// volatile: on every access, because others write what it reads. A load must not move over a barrier, and all barriers
// are volatile too; weak loads need no clobber for that. ptxas still reorders weak accesses, as far as the ISA allows.
#pragma once

#include "ptx/types.cuh"

namespace longcat_ops::ptx {

// The body of a load of 1, 2, 4, 8 or 16 bytes. The ISA has no 8-bit registers, so a byte goes through 16 bits.
#define LC_PTX_LOAD_BODY(OPCODE, CONSTRAINT, ADDRESS)                                                  \
  static_assert(std::is_trivially_copyable_v<T>);                                                      \
  if constexpr (sizeof(T) == 1) {                                                                      \
    uint16_t bits;                                                                                     \
    asm volatile(OPCODE ".u8 %0, [%1];" : "=h"(bits) : CONSTRAINT(ADDRESS));                           \
    return detail::bits_as<T>(static_cast<uint8_t>(bits));                                             \
  } else if constexpr (sizeof(T) == 2) {                                                               \
    uint16_t bits;                                                                                     \
    asm volatile(OPCODE ".b16 %0, [%1];" : "=h"(bits) : CONSTRAINT(ADDRESS));                          \
    return detail::bits_as<T>(bits);                                                                   \
  } else if constexpr (sizeof(T) == 4) {                                                               \
    uint32_t bits;                                                                                     \
    asm volatile(OPCODE ".b32 %0, [%1];" : "=r"(bits) : CONSTRAINT(ADDRESS));                          \
    return detail::bits_as<T>(bits);                                                                   \
  } else if constexpr (sizeof(T) == 8) {                                                               \
    Vec8 bits;                                                                                         \
    asm volatile(OPCODE ".v2.b32 {%0, %1}, [%2];" : "=r"(bits.x), "=r"(bits.y) : CONSTRAINT(ADDRESS)); \
    return detail::bits_as<T>(bits);                                                                   \
  } else if constexpr (std::is_same_v<T, Float4>) {                                                    \
    Float4 v;                                                                                          \
    asm volatile(OPCODE ".v4.f32 {%0, %1, %2, %3}, [%4];"                                              \
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)                                          \
                 : CONSTRAINT(ADDRESS));                                                               \
    return v;                                                                                          \
  } else {                                                                                             \
    static_assert(sizeof(T) == 16, "1, 2, 4, 8 or 16 bytes");                                          \
    Vec16 bits;                                                                                        \
    asm volatile(OPCODE ".v4.b32 {%0, %1, %2, %3}, [%4];"                                              \
                 : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)                              \
                 : CONSTRAINT(ADDRESS));                                                               \
    return detail::bits_as<T>(bits);                                                                   \
  }

#define LC_PTX_STORE_BODY(OPCODE, CONSTRAINT, ADDRESS, VALUE)                                                      \
  static_assert(std::is_trivially_copyable_v<T>);                                                                  \
  if constexpr (sizeof(T) == 1) {                                                                                  \
    const uint16_t bits = detail::bits_as<uint8_t>(VALUE);                                                         \
    asm volatile(OPCODE ".u8 [%0], %1;" ::CONSTRAINT(ADDRESS), "h"(bits) : "memory");                              \
  } else if constexpr (sizeof(T) == 2) {                                                                           \
    asm volatile(OPCODE ".b16 [%0], %1;" ::CONSTRAINT(ADDRESS), "h"(detail::bits_as<uint16_t>(VALUE)) : "memory"); \
  } else if constexpr (sizeof(T) == 4) {                                                                           \
    asm volatile(OPCODE ".b32 [%0], %1;" ::CONSTRAINT(ADDRESS), "r"(detail::bits_as<uint32_t>(VALUE)) : "memory"); \
  } else if constexpr (sizeof(T) == 8) {                                                                           \
    const Vec8 bits = detail::bits_as<Vec8>(VALUE);                                                                \
    asm volatile(OPCODE ".v2.b32 [%0], {%1, %2};" ::CONSTRAINT(ADDRESS), "r"(bits.x), "r"(bits.y) : "memory");     \
  } else if constexpr (std::is_same_v<T, Float4>) {                                                                \
    const Float4 four = VALUE;                                                                                     \
    asm volatile(OPCODE ".v4.f32 [%0], {%1, %2, %3, %4};" ::CONSTRAINT(ADDRESS), "f"(four.x), "f"(four.y),         \
                 "f"(four.z), "f"(four.w)                                                                          \
                 : "memory");                                                                                      \
  } else {                                                                                                         \
    static_assert(sizeof(T) == 16, "1, 2, 4, 8 or 16 bytes");                                                      \
    const Vec16 bits = detail::bits_as<Vec16>(VALUE);                                                              \
    asm volatile(OPCODE ".v4.b32 [%0], {%1, %2, %3, %4};" ::CONSTRAINT(ADDRESS), "r"(bits.x), "r"(bits.y),         \
                 "r"(bits.z), "r"(bits.w)                                                                          \
                 : "memory");                                                                                      \
  }

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-ld
template <class T>
LC_DEVICE T load_shared(uint32_t addr) {
  LC_PTX_LOAD_BODY("ld.shared", "r", addr)
}
// From any block of the cluster: see cluster_address.
template <class T>
LC_DEVICE T load_shared_cluster(uint32_t addr) {
  LC_PTX_LOAD_BODY("ld.shared::cluster", "r", addr)
}
template <class T>
LC_DEVICE T load_global(const T* p) {
  LC_PTX_LOAD_BODY("ld.global", "l", detail::global_address(p))
}

// Through the read-only path, for data that stays unwritten during the kernel. Still volatile: hoisted above
// griddepcontrol.wait, it would read what the previous grid has not written yet.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-ld-global-nc
template <class T>
LC_DEVICE T load_global_nc(const T* p){LC_PTX_LOAD_BODY("ld.global.nc.L1::no_allocate", "l", detail::global_address(p))}

// Brings the line of *p into L2, without a register for it. p must point into memory that is there.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-prefetch-prefetchu
LC_DEVICE void prefetch_global_l2(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(detail::global_address(p)));
}

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-st
template <class T>
LC_DEVICE void store_shared(uint32_t addr, T v) {
  LC_PTX_STORE_BODY("st.shared", "r", addr, v)
}
template <class T>
LC_DEVICE void store_shared_cluster(uint32_t addr, T v) {
  LC_PTX_STORE_BODY("st.shared::cluster", "r", addr, v)
}
template <class T>
LC_DEVICE void store_global(T* p, T v){LC_PTX_STORE_BODY("st.global", "l", detail::global_address(p), v)}
#undef LC_PTX_LOAD_BODY
#undef LC_PTX_STORE_BODY

// The bodies of strong accesses, which the ISA makes single-copy atomic: 4 or 8 bytes in one piece.
#define LC_PTX_STRONG_LOAD_BODY(OPCODE)                                                                    \
  if constexpr (sizeof(T) == 4) {                                                                          \
    uint32_t bits;                                                                                         \
    asm volatile(OPCODE ".global.b32 %0, [%1];" : "=r"(bits) : "l"(detail::global_address(p)) : "memory"); \
    return detail::bits_as<T>(bits);                                                                       \
  } else {                                                                                                 \
    uint64_t bits;                                                                                         \
    asm volatile(OPCODE ".global.b64 %0, [%1];" : "=l"(bits) : "l"(detail::global_address(p)) : "memory"); \
    return detail::bits_as<T>(bits);                                                                       \
  }

#define LC_PTX_STRONG_STORE_BODY(OPCODE)                                                                            \
  if constexpr (sizeof(T) == 4) {                                                                                   \
    asm volatile(OPCODE ".global.b32 [%0], %1;" ::"l"(detail::global_address(p)), "r"(detail::bits_as<uint32_t>(v)) \
                 : "memory");                                                                                       \
  } else {                                                                                                          \
    asm volatile(OPCODE ".global.b64 [%0], %1;" ::"l"(detail::global_address(p)), "l"(detail::bits_as<uint64_t>(v)) \
                 : "memory");                                                                                       \
  }

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-ld
template <class T>
LC_DEVICE T load_relaxed_gpu(const T* p) {
  static_assert(detail::is_atomic_type<T>, "a 32 or 64-bit integer, or Vec8");
  LC_PTX_STRONG_LOAD_BODY("ld.relaxed.gpu")
}
template <class T>
LC_DEVICE T load_relaxed_sys(const T* p) {
  static_assert(detail::is_atomic_type<T>, "a 32 or 64-bit integer, or Vec8");
  LC_PTX_STRONG_LOAD_BODY("ld.relaxed.sys")
}
template <class T>
LC_DEVICE T load_acquire_gpu(const T* p) {
  static_assert(std::is_integral_v<T> && detail::is_atomic_type<T>, "a 32 or 64-bit integer");
  LC_PTX_STRONG_LOAD_BODY("ld.acquire.gpu")
}
template <class T>
LC_DEVICE T load_acquire_sys(const T* p) {
  static_assert(std::is_integral_v<T> && detail::is_atomic_type<T>, "a 32 or 64-bit integer");
  LC_PTX_STRONG_LOAD_BODY("ld.acquire.sys")
}

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-st
template <class T>
LC_DEVICE void store_relaxed_gpu(T* p, T v) {
  static_assert(detail::is_atomic_type<T>, "a 32 or 64-bit integer, or Vec8");
  LC_PTX_STRONG_STORE_BODY("st.relaxed.gpu")
}
template <class T>
LC_DEVICE void store_relaxed_sys(T* p, T v) {
  static_assert(detail::is_atomic_type<T>, "a 32 or 64-bit integer, or Vec8");
  LC_PTX_STRONG_STORE_BODY("st.relaxed.sys")
}
template <class T>
LC_DEVICE void store_release_gpu(T* p, T v) {
  static_assert(std::is_integral_v<T> && detail::is_atomic_type<T>, "a 32 or 64-bit integer");
  LC_PTX_STRONG_STORE_BODY("st.release.gpu")
}
template <class T>
LC_DEVICE void store_release_sys(T* p, T v) {
  static_assert(std::is_integral_v<T> && detail::is_atomic_type<T>, "a 32 or 64-bit integer");
  LC_PTX_STRONG_STORE_BODY("st.release.sys")
}
#undef LC_PTX_STRONG_LOAD_BODY
#undef LC_PTX_STRONG_STORE_BODY

// Lines of data and flags: two words of 8 bytes, each in one piece (.v4.b32 would be four of 4). They may be seen in
// any order, and one without the other, so every word carries its own flag: {data, flag} twice.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-ld
LC_DEVICE Vec16 load_relaxed_sys_two_words(const Vec16* p) {
  uint64_t low, high;
  asm volatile("ld.relaxed.sys.global.v2.b64 {%0, %1}, [%2];"
               : "=l"(low), "=l"(high)
               : "l"(detail::global_address(p))
               : "memory");
  const uint64_t words[2] = {low, high};
  return detail::bits_as<Vec16>(words);
}
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-st
LC_DEVICE void store_relaxed_sys_two_words(Vec16* p, Vec16 v) {
  asm volatile("st.relaxed.sys.global.v2.b64 [%0], {%1, %2};" ::"l"(detail::global_address(p)),
               "l"(detail::bits_as<uint64_t>(Vec8{v.x, v.y})), "l"(detail::bits_as<uint64_t>(Vec8{v.z, v.w}))
               : "memory");
}

// Atomic *p += v without the old value.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-red
LC_DEVICE void red_add_relaxed_gpu(uint32_t* p, uint32_t v) {
  asm volatile("red.relaxed.gpu.global.add.u32 [%0], %1;" ::"l"(detail::global_address(p)), "r"(v) : "memory");
}
LC_DEVICE void red_add_release_gpu(uint32_t* p, uint32_t v) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(detail::global_address(p)), "r"(v) : "memory");
}
LC_DEVICE void red_add_relaxed_sys(uint32_t* p, uint32_t v) {
  asm volatile("red.relaxed.sys.global.add.u32 [%0], %1;" ::"l"(detail::global_address(p)), "r"(v) : "memory");
}
LC_DEVICE void red_add_release_sys(uint32_t* p, uint32_t v) {
  asm volatile("red.release.sys.global.add.u32 [%0], %1;" ::"l"(detail::global_address(p)), "r"(v) : "memory");
}

// Returns the value before the addition.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-atom
LC_DEVICE uint32_t atomic_add_acq_rel_gpu(uint32_t* p, uint32_t v) {
  uint32_t old;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(detail::global_address(p)), "r"(v)
               : "memory");
  return old;
}

// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-membar
LC_DEVICE void fence_acq_rel_cta() { asm volatile("fence.acq_rel.cta;" ::: "memory"); }
LC_DEVICE void fence_acq_rel_cluster() { asm volatile("fence.acq_rel.cluster;" ::: "memory"); }
LC_DEVICE void fence_acq_rel_gpu() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }
LC_DEVICE void fence_acq_rel_sys() { asm volatile("fence.acq_rel.sys;" ::: "memory"); }

// Order generic accesses and those of TMA and wgmma, which go through the async proxy: to the block's shared memory,
// the cluster's, global memory, or all of them.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-membar
LC_DEVICE void fence_proxy_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
LC_DEVICE void fence_proxy_async_shared_cluster() { asm volatile("fence.proxy.async.shared::cluster;" ::: "memory"); }
LC_DEVICE void fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }
LC_DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async;" ::: "memory"); }

// Orders accesses to the same memory through different addresses, a multicast one and the device's own.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-membar
LC_DEVICE void fence_proxy_alias() { asm volatile("fence.proxy.alias;" ::: "memory"); }

// Makes earlier mbarrier_init visible to the cluster and to the async proxy.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-membar
LC_DEVICE void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Between two polls of a spin loop, `while (load_acquire_gpu(p) < n) spin_pause();`: sleeps for at most about 64 ns, to
// leave issue slots and the memory system to others.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#miscellaneous-instructions-nanosleep
LC_DEVICE void spin_pause() { asm volatile("nanosleep.u32 32;"); }

}  // namespace longcat_ops::ptx
