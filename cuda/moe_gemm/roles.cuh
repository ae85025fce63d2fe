// What the kernels have in common: the rings in shared memory, and the warps behind those that multiply.
#pragma once

#include "moe_gemm/producer.cuh"
#include "moe_gemm/split.cuh"

namespace longcat_ops::moe_gemm {

constexpr uint32_t kConsumerWarps = 8;

// The whole block, with kSplit the whole cluster.
template <bool kSplit = false>
LC_DEVICE void init_rings(const MoeGemmParams& p, uint32_t base) {
  if (ptx::thread_index() == 0) {
    const uint32_t barriers = base + p.smem.barriers;
    device::init_pipeline(barriers, p.smem.stages, kProducers, p.smem.consumer_warps);
    device::init_pipeline(barriers + device::kPipelineBytes * p.smem.stages, kQueueTiles, 1,
                          kProducers + p.smem.consumer_warps);
    if constexpr (kSplit) PieceExchange::init(p, base);
    ptx::fence_mbarrier_init();
  }
  if constexpr (kSplit) {
    ptx::cluster_arrive_relaxed();  // the fence above is what it orders
    ptx::cluster_wait_acquire();
  } else {
    ptx::sync_threads();
  }
}

// Warps 8 .. 11: the schedule, weights, tokens and scales. kTma: tensor maps describe weights and tokens. kPanels: as
// in produce_scales. kSplit: the blocks of a cluster have the same tiles, and a piece of K each.
template <uint32_t kLargest, bool kTma, uint32_t kPanels = 1, bool kSplit = false>
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
    if (!kTma || ptx::elect_one()) produce_tokens<kTma, kSplit>(p, base);
  } else {
    produce_scales<kLargest, kPanels, kSplit>(p, base);
  }
}

}  // namespace longcat_ops::moe_gemm
