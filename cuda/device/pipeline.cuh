// A ring of stages in shared memory between producers and consumers. Each stage has a full and an empty mbarrier.
#pragma once

#include <cstdint>

#include "device/barrier_pair.h"
#include "ptx/ptx.cuh"

namespace longcat_ops::device {

// Address of a stage's pair, which is its full barrier's; the empty barrier lies kEmptyOffset further.
LC_DEVICE uint32_t barrier_pair(uint32_t barriers, uint32_t stage) { return barriers + kBarrierPairBytes * stage; }

// Called by one thread, before fence_mbarrier_init and a barrier of the block. producers, consumers: arrivals that
// complete a stage's full and empty barrier.
LC_DEVICE void init_pipeline(uint32_t barriers, uint32_t stages, uint32_t producers, uint32_t consumers) {
  for (uint32_t i = 0; i < stages; ++i) {
    ptx::mbarrier_init(barrier_pair(barriers, i), producers);
    ptx::mbarrier_init(barrier_pair(barriers, i) + kEmptyOffset, consumers);
  }
}

// One role's position in the ring. All roles step through the same stages, so each tracks the phase by itself.
struct Pipeline {
  uint32_t barriers, stages;
  uint32_t stage = 0, phase = 0;

  LC_DEVICE Pipeline(uint32_t barriers_, uint32_t stages_) : barriers(barriers_), stages(stages_) {}

  LC_DEVICE uint32_t full() const { return barrier_pair(barriers, stage); }
  LC_DEVICE uint32_t empty() const { return full() + kEmptyOffset; }
  LC_DEVICE void wait_full() const { ptx::mbarrier_wait(full(), phase); }
  // Arrivals may come from another block of the cluster. The fence covers shared memory only, which costs nothing more.
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

// One arrival for the whole warp. NOTE: lane 0's arrival releases its own accesses only, so the other lanes' must
// precede it.
LC_DEVICE void arrive_warp(uint32_t barrier) {
  ptx::warp_sync();
  if (ptx::lane_index() == 0) ptx::mbarrier_arrive(barrier);
}

// The same, at this barrier and at the other block's in a cluster of two.
// NOTE: this block's comes first. The other block advances on its own barrier and may arrive here for the next phase
// before all its arrivals for this phase have come. Whatever ends this phase must include this block's arrivals.
LC_DEVICE void arrive_warp_pair(uint32_t barrier) {
  arrive_warp(barrier);
  if (ptx::lane_index() != 0) return;
  ptx::fence_release_shared_cluster();
  ptx::mbarrier_arrive_relaxed_cluster(ptx::cluster_address(barrier, ptx::cluster_rank() ^ 1));
}

}  // namespace longcat_ops::device
