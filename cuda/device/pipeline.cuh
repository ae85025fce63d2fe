// A ring of stages in shared memory between producers and consumers: per stage an mbarrier that says it is full and one
// that says it is empty.
#pragma once

#include <cstdint>

#include "device/barrier_pair.h"
#include "ptx/ptx.cuh"

namespace longcat_ops::device {

// Address of the pair of a stage, and so of its full barrier; the empty one is kEmptyOffset further.
LC_DEVICE uint32_t barrier_pair(uint32_t barriers, uint32_t stage) { return barriers + kBarrierPairBytes * stage; }

// One thread, before fence_mbarrier_init and a barrier of the block. producers, consumers: arrivals that fill a stage,
// and that empty it.
LC_DEVICE void init_pipeline(uint32_t barriers, uint32_t stages, uint32_t producers, uint32_t consumers) {
  for (uint32_t i = 0; i < stages; ++i) {
    ptx::mbarrier_init(barrier_pair(barriers, i), producers);
    ptx::mbarrier_init(barrier_pair(barriers, i) + kEmptyOffset, consumers);
  }
}

// One role's place in the ring. All roles step through the same stages, so each derives the phase by itself.
struct Pipeline {
  uint32_t barriers, stages;
  uint32_t stage = 0, phase = 0;

  LC_DEVICE Pipeline(uint32_t barriers_, uint32_t stages_) : barriers(barriers_), stages(stages_) {}

  LC_DEVICE uint32_t full() const { return barrier_pair(barriers, stage); }
  LC_DEVICE uint32_t empty() const { return full() + kEmptyOffset; }
  LC_DEVICE void wait_full() const { ptx::mbarrier_wait(full(), phase); }
  // Arrivals may be those of another block of the cluster. For shared memory only, which costs nothing more.
  LC_DEVICE void wait_empty() const {
    ptx::mbarrier_wait_relaxed_cluster(empty(), phase ^ 1);
    ptx::fence_acquire_shared_cluster();
  }
  LC_DEVICE void advance() {
    if (++stage == stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// For the whole warp. NOTE: lane 0's arrival orders its own accesses only, so the others' must come before it.
LC_DEVICE void arrive_warp(uint32_t barrier) {
  ptx::warp_sync();
  if (ptx::lane_index() == 0) ptx::mbarrier_arrive(barrier);
}

// The same, at this barrier and at that of the other block in a cluster of two.
// NOTE: at this one first. The other block goes on by its own barrier and may arrive here for the next phase before all
// of this phase's arrivals from there have come: then this block's must be among those that end it.
LC_DEVICE void arrive_warp_pair(uint32_t barrier) {
  arrive_warp(barrier);
  if (ptx::lane_index() != 0) return;
  ptx::fence_release_shared_cluster();
  ptx::mbarrier_arrive_relaxed_cluster(ptx::cluster_address(barrier, ptx::cluster_rank() ^ 1));
}

}  // namespace longcat_ops::device
