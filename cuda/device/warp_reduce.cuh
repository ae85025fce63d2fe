// Reductions in one fixed order: a butterfly over the lanes, then one over the warps of the block. Every lane returns
// the same bits.
#pragma once

#include <cstdint>

#include "ptx/ptx.cuh"

namespace longcat_ops::device {

struct Max {
  LC_DEVICE uint32_t operator()(uint32_t a, uint32_t b) const { return a > b ? a : b; }
};

struct Sum {
  LC_DEVICE float operator()(float a, float b) const { return ptx::add_rn(a, b); }
};

// Reduces each aligned team of kLanes lanes; all 32 lanes of the warp call it.
template <int kLanes, class Combine, class T>
LC_DEVICE T reduce_lanes(T value, Combine combine) {
  static_assert(kLanes == 1 || kLanes == 2 || kLanes == 4 || kLanes == 8 || kLanes == 16 || kLanes == 32);
  LC_UNROLL
  for (int mask = kLanes / 2; mask > 0; mask /= 2) value = combine(value, ptx::shuffle_xor(value, mask));
  return value;
}

// Reduces `warps` <= kMaxWarps neighbouring warps, which all call it with their places among them. sync: their barrier.
// T() is the neutral element. `scratch`: kMaxWarps * 4 bytes of shared memory, in use until their next barrier.
constexpr int kMaxWarps = 8;
constexpr uint32_t kReduceScratchBytes = kMaxWarps * 4;

template <class Combine, class T, class Sync>
LC_DEVICE T reduce_warps(T value, Combine combine, uint32_t warps, uint32_t place, uint32_t scratch, Sync sync) {
  static_assert(sizeof(T) == 4);
  value = reduce_lanes<32>(value, combine);
  const uint32_t lane = ptx::lane_index();
  if (lane == 0) ptx::store_shared<T>(scratch + 4 * place, value);
  sync();
  const T partial = lane < warps ? ptx::load_shared<T>(scratch + 4 * lane) : T();
  // Lanes 0 .. 7 hold all partial values and the other teams neutral ones, so lane 0 broadcasts its result.
  return ptx::shuffle(reduce_lanes<kMaxWarps>(partial, combine), 0);
}

// Reduces the first `warps` warps of a block whose other warps wait at the same barrier.
template <class Combine, class T>
LC_DEVICE T reduce_block(T value, Combine combine, uint32_t warps, uint32_t scratch) {
  return reduce_warps(value, combine, warps, ptx::warp_index(), scratch, [] { ptx::sync_threads(); });
}

}  // namespace longcat_ops::device
