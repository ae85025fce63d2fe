// Indices of a thread, and how the threads of a warp, a block and a grid synchronise.
// "memory" clobber: on whatever orders memory (barriers, griddepcontrol.wait); the compiler then moves no access over
// it. volatile: on what has an effect beyond its result, or a result that differs from call to call.
#pragma once

#include "ptx/types.cuh"

namespace longcat_ops::ptx {

inline constexpr uint32_t kFullMask = 0xffffffff;

// Blocks and grids have one dimension.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#special-registers-tid
// https://docs.nvidia.com/cuda/parallel-thread-execution/#special-registers-ctaid
// https://docs.nvidia.com/cuda/parallel-thread-execution/#special-registers-nctaid
LC_DEVICE uint32_t thread_index() { return threadIdx.x; }
LC_DEVICE uint32_t block_index() { return blockIdx.x; }
LC_DEVICE uint32_t grid_size() { return gridDim.x; }

// From tid rather than %laneid, so that the compiler knows its range and its relation to thread_index().
// https://docs.nvidia.com/cuda/parallel-thread-execution/#special-registers-laneid
LC_DEVICE uint32_t lane_index() { return threadIdx.x % 32; }

// Broadcast from lane 0: the compiler sees a warp-uniform value, so branches on it do not diverge.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-shfl-sync
LC_DEVICE uint32_t warp_index() { return __shfl_sync(kFullMask, threadIdx.x / 32, 0); }

// 1024 bytes is the period of the 128-byte swizzle.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#shared-state-space
LC_DEVICE uint32_t dynamic_smem_base() {
  extern __shared__ __align__(1024) uint8_t dynamic_smem[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_smem));
}

// https://docs.nvidia.com/cuda/parallel-thread-execution/#special-registers-globaltimer
LC_DEVICE uint64_t globaltimer_ns() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// The multiprocessor that the thread runs on; a preemption may change it.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#special-registers-smid
LC_DEVICE uint32_t sm_index() {
  uint32_t sm;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
  return sm;
}

// Waits until the grids this one depends on have finished and their writes are visible.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-griddepcontrol
LC_DEVICE void grid_dependency_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Lets dependent grids start. Orders no memory: they wait for the end of this grid before they read its results.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-griddepcontrol
LC_DEVICE void grid_dependency_launch() { asm volatile("griddepcontrol.launch_dependents;"); }

// Sets the registers per thread of the calling warpgroup, all of whose warps must execute it. inc waits until others
// have released enough.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#miscellaneous-instructions-setmaxnreg
template <int N>
LC_DEVICE void setmaxnreg_inc() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg takes 24, 32, ..., 256");
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
LC_DEVICE void setmaxnreg_dec() {
  static_assert(N % 8 == 0 && N >= 24 && N <= 256, "setmaxnreg takes 24, 32, ..., 256");
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// True in one lane of a converged warp, always the same one.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-elect-sync
LC_DEVICE bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}"
      : "=r"(elected));
  return elected != 0;
}

// Every lane takes part; a lane whose source is out of range keeps its value.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-shfl-sync
template <class T>
LC_DEVICE T shuffle(T v, int src_lane) {
  return detail::bits_as<T>(__shfl_sync(kFullMask, detail::bits_as<uint32_t>(v), src_lane));
}
template <class T>
LC_DEVICE T shuffle_xor(T v, int mask) {
  return detail::bits_as<T>(__shfl_xor_sync(kFullMask, detail::bits_as<uint32_t>(v), mask));
}
template <class T>
LC_DEVICE T shuffle_up(T v, int delta) {
  return detail::bits_as<T>(__shfl_up_sync(kFullMask, detail::bits_as<uint32_t>(v), delta));
}

// Votes of all 32 lanes.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-vote-sync
LC_DEVICE uint32_t ballot(bool p) { return __ballot_sync(kFullMask, p); }
LC_DEVICE bool any(bool p) { return __any_sync(kFullMask, p) != 0; }
LC_DEVICE bool all(bool p) { return __all_sync(kFullMask, p) != 0; }

// The largest and the smallest value of all 32 lanes, in every lane.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-redux-sync
LC_DEVICE uint32_t redux_max(uint32_t v) { return __reduce_max_sync(kFullMask, v); }
LC_DEVICE uint32_t redux_min(uint32_t v) { return __reduce_min_sync(kFullMask, v); }

// The lanes of the warp whose value is this lane's, as a mask.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-match-sync
LC_DEVICE uint32_t match_any(uint32_t v) { return __match_any_sync(kFullMask, v); }

// https://docs.nvidia.com/cuda/parallel-thread-execution/#integer-arithmetic-instructions-popc
LC_DEVICE uint32_t popcount(uint32_t mask) { return __popc(mask); }

// Orders memory among the lanes of a warp.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-bar-warp-sync
LC_DEVICE void warp_sync() { asm volatile("bar.warp.sync 0xffffffff;" ::: "memory"); }

// Barrier 0 is for the whole block; 1..15 are for `threads` threads, a multiple of 32. Both sync and arrive count.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#parallel-synchronization-and-communication-instructions-bar
LC_DEVICE void sync_threads() { asm volatile("bar.sync 0;" ::: "memory"); }
LC_DEVICE void named_barrier_sync(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
LC_DEVICE void named_barrier_arrive(uint32_t id, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace longcat_ops::ptx
