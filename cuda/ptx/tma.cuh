// Bulk copies by the TMA unit. One thread issues for all. They read and write through the async proxy: see
// fence_proxy_async_*. Loads complete on an mbarrier, the others in the issuing thread's bulk groups.
// "memory" clobber: on everything but prefetch and create_policy, so that no access moves over the start or the end of
// a copy. volatile: on everything but create_policy, because each starts or awaits work outside the thread.
#pragma once

#include "ptx/types.cuh"

namespace longcat_ops::ptx {

// The map may stay in kernel parameters: the instructions take its generic address.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-prefetch-prefetchu
LC_DEVICE void prefetch_tensormap(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map)); }

// Eviction priority of a load's lines in L2: first, or last. A hint, for all of a load's bytes.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-createpolicy
LC_DEVICE uint64_t create_policy_evict_first() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
LC_DEVICE uint64_t create_policy_evict_last() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// The body of a copy from a tiled tensor. MODIFIERS and OPERANDS follow those that every copy has: %3 is the mask and
// %4 the policy, and a statement need not use both.
#define LC_PTX_TMA_LOAD(DIM, COORDS, MODIFIERS, OPERANDS)                                           \
  "cp.async.bulk.tensor." DIM ".shared::cluster.global.tile.mbarrier::complete_tx::bytes" MODIFIERS \
  " [%0], [%1, {" COORDS "}], [%2]" OPERANDS ";"
#define LC_PTX_TMA_LOAD_BODY(MODIFIERS, OPERANDS, MASK, POLICY)                                                     \
  static_assert(R >= 1 && R <= 5, "tensors have 1 to 5 dimensions");                                                \
  if constexpr (R == 1) {                                                                                           \
    asm volatile(LC_PTX_TMA_LOAD("1d", "%5", MODIFIERS, OPERANDS)::"r"(dst), "l"(map), "r"(bar), "h"(MASK),         \
                 "l"(POLICY), "r"(coord[0])                                                                         \
                 : "memory");                                                                                       \
  } else if constexpr (R == 2) {                                                                                    \
    asm volatile(LC_PTX_TMA_LOAD("2d", "%5, %6", MODIFIERS, OPERANDS)::"r"(dst), "l"(map), "r"(bar), "h"(MASK),     \
                 "l"(POLICY), "r"(coord[0]), "r"(coord[1])                                                          \
                 : "memory");                                                                                       \
  } else if constexpr (R == 3) {                                                                                    \
    asm volatile(LC_PTX_TMA_LOAD("3d", "%5, %6, %7", MODIFIERS, OPERANDS)::"r"(dst), "l"(map), "r"(bar), "h"(MASK), \
                 "l"(POLICY), "r"(coord[0]), "r"(coord[1]), "r"(coord[2])                                           \
                 : "memory");                                                                                       \
  } else if constexpr (R == 4) {                                                                                    \
    asm volatile(LC_PTX_TMA_LOAD("4d", "%5, %6, %7, %8", MODIFIERS, OPERANDS)::"r"(dst), "l"(map), "r"(bar),        \
                 "h"(MASK), "l"(POLICY), "r"(coord[0]), "r"(coord[1]), "r"(coord[2]), "r"(coord[3])                 \
                 : "memory");                                                                                       \
  } else {                                                                                                          \
    asm volatile(LC_PTX_TMA_LOAD("5d", "%5, %6, %7, %8, %9", MODIFIERS, OPERANDS)::"r"(dst), "l"(map), "r"(bar),    \
                 "h"(MASK), "l"(POLICY), "r"(coord[0]), "r"(coord[1]), "r"(coord[2]), "r"(coord[3]), "r"(coord[4])  \
                 : "memory");                                                                                       \
  }

// Copies a box of a tiled tensor of rank R to shared memory; coord[0] belongs to the innermost dimension. All bytes of
// the box count on the mbarrier; elements out of bounds arrive as zeros. The destination is a shared::cluster address,
// which includes a block's own shared::cta addresses. policy: from create_policy_*.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-tensor
template <int R>
LC_DEVICE void tma_load(uint32_t dst, const TensorMap* map, uint32_t bar, const int32_t (&coord)[R]) {
  LC_PTX_TMA_LOAD_BODY("", "", uint16_t{0}, uint64_t{0})
}
template <int R>
LC_DEVICE void tma_load(uint32_t dst, const TensorMap* map, uint32_t bar, const int32_t (&coord)[R], uint64_t policy) {
  LC_PTX_TMA_LOAD_BODY(".L2::cache_hint", ", %4", uint16_t{0}, policy)
}

// The same to every block of the cluster whose rank is a bit of cta_mask: each gets the box, and its bytes counted, at
// the offsets that dst and bar have in this block.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-tensor
template <int R>
LC_DEVICE void tma_load_multicast(uint32_t dst, const TensorMap* map, uint32_t bar, const int32_t (&coord)[R],
                                  uint16_t cta_mask) {
  LC_PTX_TMA_LOAD_BODY(".multicast::cluster", ", %3", cta_mask, uint64_t{0})
}
template <int R>
LC_DEVICE void tma_load_multicast(uint32_t dst, const TensorMap* map, uint32_t bar, const int32_t (&coord)[R],
                                  uint16_t cta_mask, uint64_t policy){
    LC_PTX_TMA_LOAD_BODY(".multicast::cluster.L2::cache_hint", ", %3, %4", cta_mask, policy)}
#undef LC_PTX_TMA_LOAD
#undef LC_PTX_TMA_LOAD_BODY

#define LC_PTX_TMA_WRITE(DIM, COORDS) \
  "cp.async.bulk.tensor." DIM ".global.shared::cta.tile.bulk_group [%0, {" COORDS "}], [%1];"

// Copies a box from shared memory to a tiled tensor; elements out of bounds are dropped.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-tensor
template <int R>
LC_DEVICE void tma_store(const TensorMap* map, uint32_t src, const int32_t (&coord)[R]) {
  static_assert(R >= 1 && R <= 5, "tensors have 1 to 5 dimensions");
  if constexpr (R == 1) {
    asm volatile(LC_PTX_TMA_WRITE("1d", "%2")::"l"(map), "r"(src), "r"(coord[0]) : "memory");
  } else if constexpr (R == 2) {
    asm volatile(LC_PTX_TMA_WRITE("2d", "%2, %3")::"l"(map), "r"(src), "r"(coord[0]), "r"(coord[1]) : "memory");
  } else if constexpr (R == 3) {
    asm volatile(LC_PTX_TMA_WRITE("3d", "%2, %3, %4")::"l"(map), "r"(src), "r"(coord[0]), "r"(coord[1]), "r"(coord[2])
                 : "memory");
  } else if constexpr (R == 4) {
    asm volatile(LC_PTX_TMA_WRITE("4d", "%2, %3, %4, %5")::"l"(map), "r"(src), "r"(coord[0]), "r"(coord[1]),
                 "r"(coord[2]), "r"(coord[3])
                 : "memory");
  } else {
    asm volatile(LC_PTX_TMA_WRITE("5d", "%2, %3, %4, %5, %6")::"l"(map), "r"(src), "r"(coord[0]), "r"(coord[1]),
                 "r"(coord[2]), "r"(coord[3]), "r"(coord[4])
                 : "memory");
  }
}
#undef LC_PTX_TMA_WRITE

// Copies contiguous bytes; both addresses and the size are multiples of 16.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk
LC_DEVICE void bulk_load(uint32_t dst, const void* src, uint32_t bytes, uint32_t bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst),
               "l"(detail::global_address(src)), "r"(bytes), "r"(bar)
               : "memory");
}
LC_DEVICE void bulk_store(void* dst, uint32_t src, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(detail::global_address(dst)),
               "r"(src), "r"(bytes)
               : "memory");
}

// Closes the thread's current bulk group.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-commit-group
LC_DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until at most N of the thread's newest groups still read their shared memory, or are incomplete.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cp-async-bulk-wait-group
template <int N>
LC_DEVICE void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
template <int N>
LC_DEVICE void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}

}  // namespace longcat_ops::ptx
