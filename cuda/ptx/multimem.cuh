// Operations on multicast addresses: one address that stands for the same offset in the memory of several GPUs. Any
// other instruction on such an address is undefined, and so is multimem on any other address.
// "memory" clobber and volatile: on everything, because other GPUs read and write the same data.
// A load sums over the members, in fp32 and in no particular order. To the ISA the words of a vector are separate
// operations: a flag travels in 4 or 8 bytes of its own, never beside data in 16.
#pragma once

#include "ptx/types.cuh"

// ptxas of older toolkits breaks barriers built on multimem.red.
#if defined(__CUDACC_VER_MAJOR__) && \
    (__CUDACC_VER_MAJOR__ < 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ < 6))
#error "ptx/multimem.cuh needs CUDA 12.6 or newer: older ptxas miscompiles multimem barriers"
#endif

namespace longcat_ops::ptx {

#define LC_PTX_MULTIMEM_LOAD(INSTRUCTION, TYPE_NAME)                                                                \
  if constexpr (sizeof(T) == 4) {                                                                                   \
    uint32_t bits;                                                                                                  \
    asm volatile(INSTRUCTION "." TYPE_NAME " %0, [%1];" : "=r"(bits) : "l"(detail::global_address(mc)) : "memory"); \
    return detail::bits_as<T>(bits);                                                                                \
  } else if constexpr (sizeof(T) == 8) {                                                                            \
    Vec8 bits;                                                                                                      \
    asm volatile(INSTRUCTION ".v2." TYPE_NAME " {%0, %1}, [%2];"                                                    \
                 : "=r"(bits.x), "=r"(bits.y)                                                                       \
                 : "l"(detail::global_address(mc))                                                                  \
                 : "memory");                                                                                       \
    return detail::bits_as<T>(bits);                                                                                \
  } else {                                                                                                          \
    static_assert(sizeof(T) == 16, "4, 8 or 16 bytes");                                                             \
    Vec16 bits;                                                                                                     \
    asm volatile(INSTRUCTION ".v4." TYPE_NAME " {%0, %1, %2, %3}, [%4];"                                            \
                 : "=r"(bits.x), "=r"(bits.y), "=r"(bits.z), "=r"(bits.w)                                           \
                 : "l"(detail::global_address(mc))                                                                  \
                 : "memory");                                                                                       \
    return detail::bits_as<T>(bits);                                                                                \
  }

// .acc::f32: without it pairs of bf16 or f16 are summed in their own precision.
#define LC_PTX_MULTIMEM_LOAD_ADD(ORDER)                                                \
  if constexpr (TYPE == MultimemType::kF32) {                                          \
    LC_PTX_MULTIMEM_LOAD("multimem.ld_reduce." ORDER ".global.add", "f32")             \
  } else if constexpr (TYPE == MultimemType::kBF16) {                                  \
    LC_PTX_MULTIMEM_LOAD("multimem.ld_reduce." ORDER ".global.add.acc::f32", "bf16x2") \
  } else {                                                                             \
    LC_PTX_MULTIMEM_LOAD("multimem.ld_reduce." ORDER ".global.add.acc::f32", "f16x2")  \
  }

#define LC_PTX_MULTIMEM_LOAD_PICK(OP)                                                                \
  static_assert(TYPE != MultimemType::kF32, "the ISA has minimum and maximum of bf16 and f16 only"); \
  if constexpr (TYPE == MultimemType::kBF16) {                                                       \
    LC_PTX_MULTIMEM_LOAD("multimem.ld_reduce.relaxed.sys.global." OP, "bf16x2")                      \
  } else {                                                                                           \
    LC_PTX_MULTIMEM_LOAD("multimem.ld_reduce.relaxed.sys.global." OP, "f16x2")                       \
  }

#define LC_PTX_MULTIMEM_STORE(ORDER)                                                                              \
  if constexpr (sizeof(T) == 4) {                                                                                 \
    asm volatile("multimem.st." ORDER ".global.b32 [%0], %1;" ::"l"(detail::global_address(mc)),                  \
                 "r"(detail::bits_as<uint32_t>(v))                                                                \
                 : "memory");                                                                                     \
  } else if constexpr (sizeof(T) == 8) {                                                                          \
    asm volatile("multimem.st." ORDER ".global.b64 [%0], %1;" ::"l"(detail::global_address(mc)),                  \
                 "l"(detail::bits_as<uint64_t>(v))                                                                \
                 : "memory");                                                                                     \
  } else {                                                                                                        \
    static_assert(sizeof(T) == 16, "4, 8 or 16 bytes");                                                           \
    const Vec16 bits = detail::bits_as<Vec16>(v);                                                                 \
    asm volatile("multimem.st." ORDER ".global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(detail::global_address(mc)), \
                 "r"(bits.x), "r"(bits.y), "r"(bits.z), "r"(bits.w)                                               \
                 : "memory");                                                                                     \
  }

#define LC_PTX_MULTIMEM_RED(ORDER)                                                                           \
  static_assert(std::is_same_v<T, uint32_t> || std::is_same_v<T, uint64_t>, "uint32_t or uint64_t");         \
  if constexpr (sizeof(T) == 4) {                                                                            \
    asm volatile("multimem.red." ORDER ".global.add.u32 [%0], %1;" ::"l"(detail::global_address(mc)), "r"(v) \
                 : "memory");                                                                                \
  } else {                                                                                                   \
    asm volatile("multimem.red." ORDER ".global.add.u64 [%0], %1;" ::"l"(detail::global_address(mc)), "l"(v) \
                 : "memory");                                                                                \
  }

#define LC_PTX_MULTIMEM_RED_VECTOR(TYPE_NAME)                                \
  asm volatile("multimem.red.relaxed.sys.global.add.v4." TYPE_NAME           \
               " [%0], {%1, %2, %3, %4};" ::"l"(detail::global_address(mc)), \
               "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)                        \
               : "memory")

// T has 4, 8 or 16 bytes: what one instruction reduces. ptxas may move and merge weak loads: prefer relaxed.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-multimem
template <MultimemType TYPE, class T>
LC_DEVICE T multimem_load_add_weak(const T* mc) {
  LC_PTX_MULTIMEM_LOAD_ADD("weak")
}
template <MultimemType TYPE, class T>
LC_DEVICE T multimem_load_add_relaxed_sys(const T* mc) {
  LC_PTX_MULTIMEM_LOAD_ADD("relaxed.sys")
}
template <MultimemType TYPE, class T>
LC_DEVICE T multimem_load_add_acquire_sys(const T* mc) {
  LC_PTX_MULTIMEM_LOAD_ADD("acquire.sys")
}
template <MultimemType TYPE, class T>
LC_DEVICE T multimem_load_min_relaxed_sys(const T* mc) {
  LC_PTX_MULTIMEM_LOAD_PICK("min")
}
template <MultimemType TYPE, class T>
LC_DEVICE T multimem_load_max_relaxed_sys(const T* mc) {
  LC_PTX_MULTIMEM_LOAD_PICK("max")
}

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-multimem
template <class T>
LC_DEVICE void multimem_store_weak(T* mc, T v) {
  LC_PTX_MULTIMEM_STORE("weak")
}
template <class T>
LC_DEVICE void multimem_store_relaxed_sys(T* mc, T v) {
  LC_PTX_MULTIMEM_STORE("relaxed.sys")
}
template <class T>
LC_DEVICE void multimem_store_release_sys(T* mc, T v) {
  LC_PTX_MULTIMEM_STORE("release.sys")
}

// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-multimem
template <class T>
LC_DEVICE void multimem_red_add_relaxed_gpu(T* mc, T v) {
  LC_PTX_MULTIMEM_RED("relaxed.gpu")
}
template <class T>
LC_DEVICE void multimem_red_add_release_gpu(T* mc, T v) {
  LC_PTX_MULTIMEM_RED("release.gpu")
}
template <class T>
LC_DEVICE void multimem_red_add_relaxed_sys(T* mc, T v) {
  LC_PTX_MULTIMEM_RED("relaxed.sys")
}
template <class T>
LC_DEVICE void multimem_red_add_release_sys(T* mc, T v) {
  LC_PTX_MULTIMEM_RED("release.sys")
}

// Adds each element of the 16 bytes by an operation of its own. f32 flushes subnormal numbers to zero.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-multimem
template <MultimemType TYPE>
LC_DEVICE void multimem_red_add_vector_relaxed_sys(Vec16* mc, Vec16 v) {
  if constexpr (TYPE == MultimemType::kF32) {
    LC_PTX_MULTIMEM_RED_VECTOR("f32");
  } else if constexpr (TYPE == MultimemType::kBF16) {
    LC_PTX_MULTIMEM_RED_VECTOR("bf16x2");
  } else {
    LC_PTX_MULTIMEM_RED_VECTOR("f16x2");
  }
}

#undef LC_PTX_MULTIMEM_LOAD
#undef LC_PTX_MULTIMEM_LOAD_ADD
#undef LC_PTX_MULTIMEM_LOAD_PICK
#undef LC_PTX_MULTIMEM_STORE
#undef LC_PTX_MULTIMEM_RED
#undef LC_PTX_MULTIMEM_RED_VECTOR

}  // namespace longcat_ops::ptx
