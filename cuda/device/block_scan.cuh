// Exclusive prefix sums of unsigned integers over the lanes of a warp and over the threads of a block.
#pragma once

#include <cstdint>

#include "ptx/ptx.cuh"

namespace longcat_ops::device {

struct Scan {
  uint32_t before;  // the sum of the values of lower threads
  uint32_t total;
};

LC_DEVICE Scan scan_warp(uint32_t value) {
  uint32_t sum = value;
  LC_UNROLL
  for (int delta = 1; delta < 32; delta *= 2) {
    const uint32_t other = ptx::shuffle_up(sum, delta);
    if (ptx::lane_index() >= static_cast<uint32_t>(delta)) sum += other;
  }
  return {sum - value, ptx::shuffle(sum, 31)};
}

// Called by all threads of a block of `warps` <= 32 whole warps. `scratch`: 128 bytes of shared memory, in use until
// the block's next barrier.
constexpr uint32_t kScanScratchBytes = 128;

LC_DEVICE Scan scan_block(uint32_t value, uint32_t warps, uint32_t scratch) {
  const uint32_t lane = ptx::lane_index(), warp = ptx::warp_index();
  const Scan own = scan_warp(value);
  if (lane == 0) ptx::store_shared(scratch + 4 * warp, own.total);
  ptx::sync_threads();
  const Scan others = scan_warp(lane < warps ? ptx::load_shared<uint32_t>(scratch + 4 * lane) : 0);
  return {ptx::shuffle(others.before, static_cast<int>(warp)) + own.before, others.total};
}

}  // namespace longcat_ops::device
