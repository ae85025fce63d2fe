// Products of groups of tokens with their group's weight: out = tokens @ weight.T. Operands are e4m3 with scales 1x128
// and 128x128, or bf16.
//
// Floor: with few tokens per group each weight is read once, n * k elements, and used for 2 * tokens flops per element.
// So an H100 is memory-bound up to about 290 tokens per group, in either format: bf16 has twice the bytes and half the
// flops a second (docs/moe_gemm.md).
#pragma once

#include "gemm/consumer.cuh"
#include "gemm/roles.cuh"

namespace longcat_ops::moe_gemm {

// Persistent. Warps 0 .. 7 multiply; the next four produce the schedule, weights, tokens and, with FP8, scales. With
// tiles of 64 weight rows, warps 4 .. 7 have no work.
// kLargest: most tokens per tile. The small instance needs so few registers that its blocks fit beside those of the
// kernel ahead. kTma: tensor maps describe weights and tokens. kCluster: clusters have p.split blocks with small tiles,
// two with large ones.
template <Operand kOperand, uint32_t kLargest, bool kTma, Cluster kCluster>
LC_KERNEL LC_LAUNCH_BOUNDS(kThreads, kLargest > kSmallTokens ? 1 : 2)
    moe_gemm_kernel(LC_GRID_CONSTANT MoeGemmParams p) {
  const uint32_t base = ptx::dynamic_smem_base(), warp = ptx::warp_index();
  device::trace(device::TracedKernel::kGemm, device::TracePoint::kEntered);
  init_rings<kOperand, kCluster>(p, base);
  if (warp < kConsumerWarps) {
    if (warp >= p.smem.consumer_warps) return;
    if constexpr (kLargest > kSmallTokens) ptx::setmaxnreg_inc<kConsumerRegisters>();
    consume<kOperand, kLargest, kCluster>(p, base);
    return;
  }
  if constexpr (kLargest > kSmallTokens) ptx::setmaxnreg_dec<kProducerRegisters>();
  produce<kOperand, kLargest, kTma, kCluster>(p, base);
}

}  // namespace longcat_ops::moe_gemm
