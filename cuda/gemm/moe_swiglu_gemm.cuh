// m_grouped_fp8_swiglu_gemm_nt_offset: FP8 products of groups of tokens with their group's gate and up, then SwiGLU and
// 1x128 quantisation.
//
// Floor: as in moe_gemm.cuh, each weight is read once, 2 * width * k bytes. Per token h takes width * (1 + 4 / 128)
// bytes; the unfused chain writes and reads 4 * width bytes of bf16 in between (docs/moe_gemm.md).
#pragma once

#include "gemm/roles.cuh"
#include "gemm/swiglu_consumer.cuh"

namespace longcat_ops::moe_gemm {

// Roles and instances are those of moe_gemm_kernel.
template <uint32_t kLargest, bool kTma>
LC_KERNEL LC_LAUNCH_BOUNDS(kThreads, kLargest > kSmallTokens ? 1 : 2)
    moe_swiglu_gemm_kernel(LC_GRID_CONSTANT MoeSwigluGemmParams p) {
  const uint32_t base = ptx::dynamic_smem_base();
  device::trace(device::TracedKernel::kSwigluGemm, device::TracePoint::kEntered);
  init_rings(p.gemm, base);
  if (ptx::warp_index() < kConsumerWarps) {
    if constexpr (kLargest > kSmallTokens) ptx::setmaxnreg_inc<kConsumerRegisters>();
    consume_swiglu<kLargest>(p, base);
    return;
  }
  if constexpr (kLargest > kSmallTokens) ptx::setmaxnreg_dec<kProducerRegisters>();
  produce<kLargest, kTma, Cluster::kNone, 2>(p.gemm, base);
}

}  // namespace longcat_ops::moe_gemm
