// m_grouped_{fp8,bf16}_swiglu_gemm_nt_offset: products of groups of tokens with their group's gate and up, then SwiGLU
// and, if h is e4m3, 1x128 quantisation.
//
// Floor: as in moe_gemm.cuh, each weight is read once, 2 * width * k elements. Per token h takes width * (1 + 4 / 128)
// bytes, or 2 * width in bf16; the unfused chain writes and reads 4 * width bytes of bf16 in between
// (docs/moe_gemm.md).
#pragma once

#include "gemm/roles.cuh"
#include "gemm/swiglu_consumer.cuh"

namespace longcat_ops::moe_gemm {

// Roles and instances are those of moe_gemm_kernel.
template <Operand kOperand, uint32_t kLargest, bool kTma>
LC_KERNEL LC_LAUNCH_BOUNDS(kThreads, kLargest > kSmallTokens ? 1 : 2)
    moe_swiglu_gemm_kernel(LC_GRID_CONSTANT MoeSwigluGemmParams p) {
  const uint32_t base = ptx::dynamic_smem_base();
  device::trace(device::TracedKernel::kSwigluGemm, device::TracePoint::kEntered);
  init_rings<kOperand>(p.gemm, base);
  if (ptx::warp_index() < kConsumerWarps) {
    if constexpr (kLargest > kSmallTokens) ptx::setmaxnreg_inc<kConsumerRegisters>();
    consume_swiglu<kOperand, kLargest>(p, base);
    return;
  }
  if constexpr (kLargest > kSmallTokens) ptx::setmaxnreg_dec<kProducerRegisters>();
  produce<kOperand, kLargest, kTma, Cluster::kNone, 2>(p.gemm, base);
}

}  // namespace longcat_ops::moe_gemm
