// FP8 products of groups of tokens with their group's weight: out = tokens @ weight.T, scales 1x128 and 128x128.
//
// Floor: with few tokens per group each weight is read once, n * k bytes, and used for 2 * tokens flops a byte: bound
// by memory up to about 290 tokens a group on an H100 (docs/moe_gemm.md).
#pragma once

#include "gemm/consumer.cuh"
#include "gemm/roles.cuh"

namespace longcat_ops::moe_gemm {

// Persistent. Warps 0 .. 7 multiply, then one each for the schedule, weights, tokens and scales. A tile of 64 weight
// rows has no work for warps 4 .. 7.
// kLargest: the most tokens of a tile. The small instance needs so few registers that its blocks fit beside those of
// the kernel ahead of it. kTma: tensor maps describe weights and tokens. kCluster: of p.split blocks with small tiles,
// or of two with large ones.
template <uint32_t kLargest, bool kTma, Cluster kCluster>
LC_KERNEL LC_LAUNCH_BOUNDS(kThreads, kLargest > kSmallTokens ? 1 : 2)
    moe_gemm_kernel(LC_GRID_CONSTANT MoeGemmParams p) {
  const uint32_t base = ptx::dynamic_smem_base(), warp = ptx::warp_index();
  device::trace(device::TracedKernel::kGemm, device::TracePoint::kEntered);
  init_rings<kCluster>(p, base);
  if (warp < kConsumerWarps) {
    if (warp >= p.smem.consumer_warps) return;
    if constexpr (kLargest > kSmallTokens) ptx::setmaxnreg_inc<kConsumerRegisters>();
    consume<kLargest, kCluster>(p, base);
    return;
  }
  if constexpr (kLargest > kSmallTokens) ptx::setmaxnreg_dec<kProducerRegisters>();
  produce<kLargest, kTma, kCluster>(p, base);
}

}  // namespace longcat_ops::moe_gemm
