// What the kernels have in common: the rings in shared memory, and the warps behind those that multiply.
#pragma once

#include "gemm/producer.cuh"
#include "gemm/split.cuh"

namespace longcat_ops::moe_gemm {

constexpr uint32_t kConsumerWarps = 8;

// The whole block, with kSplit the whole cluster. The other block of a pair is not waited for before its barriers are
// needed, so that the first weights come sooner: each thread must do so later.
template <bool kSplit = false, bool kPairs = false>
LC_DEVICE void init_rings(const MoeGemmParams& p, uint32_t base) {
  if (ptx::thread_index() == 0) {
    const uint32_t barriers = base + p.smem.barriers, blocks = kPairs && p.paired ? 2 : 1;
    device::init_pipeline(barriers + ring_offset(p.smem, Ring::kStages), p.smem.stages, kProducers,
                          blocks * p.smem.consumer_warps);
    device::init_pipeline(barriers + ring_offset(p.smem, Ring::kTiles), kQueueTiles, 1,
                          kProducers + p.smem.consumer_warps);
    if constexpr (kSplit) PieceExchange::init(p, base);
    ptx::fence_mbarrier_init();
  }
  if constexpr (kSplit) {
    ptx::cluster_arrive_relaxed();  // the fence above is what it orders
    ptx::cluster_wait_acquire();
  } else {
    ptx::sync_threads();
    if (kPairs && p.paired) ptx::cluster_arrive_relaxed();
  }
}

// Warps 8 .. 11: the schedule, weights, tokens and scales. kTma: tensor maps describe weights and tokens. kPanels: as
// in produce_scales. kSplit: the blocks of a cluster have the same tiles, and a piece of K each.
template <uint32_t kLargest, bool kTma, uint32_t kPanels = 1, bool kSplit = false, bool kPairs = false>
LC_DEVICE void produce(const MoeGemmParams& p, uint32_t base) {
  const uint32_t role = ptx::warp_index() - kConsumerWarps;
  if (role == 0) {
    if constexpr (kSplit) {
      schedule_tiles(p, base, ptx::cluster_index(), ptx::grid_size() / ptx::cluster_size());
    } else {
      schedule_tiles(p, base);
    }
  } else if (role == 1) {
    if (!kTma || ptx::elect_one()) produce_weights<kTma, kSplit>(p, base);
  } else if (role == 2) {
    if (kPairs && p.paired) ptx::cluster_wait_acquire();
    if (!kTma || ptx::elect_one()) produce_tokens<kTma, kSplit, kPairs>(p, base);
    return;
  } else {
    produce_scales<kLargest, kPanels, kSplit>(p, base);
  }
  if (kPairs && p.paired) ptx::cluster_wait_acquire();
}

}  // namespace longcat_ops::moe_gemm
