// Shared by the kernels: the rings in shared memory, and the warps that do not multiply.
#pragma once

#include "gemm/producer.cuh"
#include "gemm/split.cuh"

namespace longcat_ops::moe_gemm {

constexpr uint32_t kConsumerWarps = 8;

// Called by the whole block. A split waits for the whole cluster. A pair does not wait here for its other block, so
// that the first weights come sooner: each thread must wait before it needs that block's barriers.
template <Operand kOperand, Cluster kCluster = Cluster::kNone>
LC_DEVICE void init_rings(const MoeGemmParams& p, uint32_t base) {
  constexpr bool kPairs = kCluster == Cluster::kPairs;
  const bool split = kCluster == Cluster::kSplit && p.split > 1;
  if (ptx::thread_index() == 0) {
    const uint32_t barriers = base + p.smem.barriers;
    device::init_pipeline(barriers + ring_offset(p.smem, Ring::kStages), p.smem.stages, producers(kOperand),
                          (kPairs ? 2 : 1) * p.smem.consumer_warps);
    device::init_pipeline(barriers + ring_offset(p.smem, Ring::kTiles), kQueueTiles, 1,
                          producers(kOperand) + p.smem.consumer_warps);
    if (split) PieceExchange::init(p, base);
    ptx::fence_mbarrier_init();
  }
  if (split) {
    ptx::cluster_arrive_relaxed();  // the fence above orders the barriers
    ptx::cluster_wait_acquire();
  } else {
    ptx::sync_threads();
    if constexpr (kPairs) ptx::cluster_arrive_relaxed();
  }
}

// Warps 8 .. 11 produce the schedule, weights, tokens and, with FP8, scales. kTma: tensor maps describe weights and
// tokens. kPanels: as in produce_scales.
template <Operand kOperand, uint32_t kLargest, bool kTma, Cluster kCluster = Cluster::kNone, uint32_t kPanels = 1>
LC_DEVICE void produce(const MoeGemmParams& p, uint32_t base) {
  constexpr bool kPairs = kCluster == Cluster::kPairs;
  const uint32_t role = ptx::warp_index() - kConsumerWarps;
  if (role == 0) {
    schedule_tiles<kCluster>(p, base);
  } else if (role == 1) {
    if (!kTma || ptx::elect_one()) produce_weights<kTma, kCluster>(p, base);
  } else if (role == 2) {
    if constexpr (kPairs) ptx::cluster_wait_acquire();
    if (!kTma || ptx::elect_one()) produce_tokens<kTma, kCluster>(p, base);
    return;
  } else if constexpr (kOperand == Operand::kFp8) {
    produce_scales<kLargest, kCluster, kPanels>(p, base);
  }
  if constexpr (kPairs) ptx::cluster_wait_acquire();
}

}  // namespace longcat_ops::moe_gemm
