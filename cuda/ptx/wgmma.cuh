// Asynchronous matrix products of a warpgroup, with operands in shared memory read through the async proxy.
// "memory" clobber: on fence, commit and wait, not on mma, because barriers before it have ordered what it reads.
// volatile: on everything; the compiler keeps volatile statements in their order.
#pragma once

#include "ptx/types.cuh"

namespace longcat_ops::ptx {
namespace detail {

// Specialised for N = 8, 16, ..., 256 in the generated file: asm cannot take a list of operands whose length varies.
// e4m3, e4m3_ra, bf16 and bf16_ra are m64nN products (_ra: A from registers), wait is wait_group.
template <int N>
struct Wgmma;

}  // namespace detail
}  // namespace longcat_ops::ptx

#include "ptx/wgmma_shapes.inc"  // written by cmake/generate_wgmma.py at configure time

namespace longcat_ops::ptx {

// Descriptor of an operand tile in shared memory. Its address must be aligned to the swizzle's period (128-byte
// swizzle: 1024 bytes). K-major with a swizzle: stride_bytes from one group of 8 rows to the next, leading_bytes
// unused. K-major without: core matrices of 8 rows x 16 bytes, leading_bytes between neighbours along K, stride_bytes
// along M or N. Steps along K inside a swizzled row add to the address.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-shared-memory-layout-matrix-descriptor
LC_DEVICE constexpr uint64_t make_descriptor(uint32_t addr, uint32_t leading_bytes, uint32_t stride_bytes,
                                             Swizzle swizzle) {
  constexpr uint32_t kField = 0x3ffff;  // 18-bit byte counts, kept in units of 16
  const uint32_t layout = swizzle == Swizzle::kNone ? 0 : 4 - static_cast<uint32_t>(swizzle);  // 1: 128 B, 2: 64, 3: 32
  const uint32_t low = ((addr & kField) >> 4) | ((leading_bytes & kField) >> 4) << 16;
  const uint32_t high = ((stride_bytes & kField) >> 4) | layout << 30;
  return static_cast<uint64_t>(high) << 32 | low;
}

// Required before the first product, and after registers of accumulators or of A were touched.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-fence
LC_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-commit-group
LC_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most N of the newest groups are pending. For register operands use wgmma_wait_for.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-wait-group
template <int N>
LC_DEVICE void wgmma_wait() {
  static_assert(N >= 0 && N <= 7);
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// The same with the accumulators as operands. volatile does not hold back register arithmetic: without them the
// compiler could move a use of the accumulators before the wait, or an earlier one after it.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-wait-group
template <int N, int COUNT>
LC_DEVICE void wgmma_wait_for(float (&acc)[COUNT]) {
  static_assert(N >= 0 && N <= 7);
  static_assert(COUNT % 4 == 0 && COUNT >= 4 && COUNT <= 128,
                "the accumulators of m64nN: N / 2 floats, N = 8, ..., 256");
  detail::Wgmma<2 * COUNT>::template wait<N>(acc);
}

// acc = A B^T (+ acc with accumulate): A is 64 x 32, B is N x 32, both K-major e4m3, accumulators f32. acc[i] of thread
// t of the warpgroup is row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4) + i % 2.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-mma
template <int N>
LC_DEVICE void wgmma_e4m3(float (&acc)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256, "wgmma has N = 8, 16, ..., 256");
  detail::Wgmma<N>::e4m3(acc, a, b, accumulate);
}
template <int N>
LC_DEVICE void wgmma_e4m3(float (&acc)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256, "wgmma has N = 8, 16, ..., 256");
  detail::Wgmma<N>::e4m3_ra(acc, a, b, accumulate);
}

// The same for bf16 and K = 16. TRANS_A, TRANS_B: 1 for an operand that is M- or N-major in shared memory.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#asynchronous-warpgroup-level-matrix-instructions-wgmma-mma
template <int N, int TRANS_A = 0, int TRANS_B = 0>
LC_DEVICE void wgmma_bf16(float (&acc)[N / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256, "wgmma has N = 8, 16, ..., 256");
  static_assert((TRANS_A == 0 || TRANS_A == 1) && (TRANS_B == 0 || TRANS_B == 1));
  detail::Wgmma<N>::template bf16<TRANS_A, TRANS_B>(acc, a, b, accumulate);
}
template <int N, int TRANS_B = 0>
LC_DEVICE void wgmma_bf16(float (&acc)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256, "wgmma has N = 8, 16, ..., 256");
  static_assert(TRANS_B == 0 || TRANS_B == 1);
  detail::Wgmma<N>::template bf16_ra<TRANS_B>(acc, a, b, accumulate);
}

}  // namespace longcat_ops::ptx
