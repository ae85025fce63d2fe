// Multiplies as consumer.cuh does, with tiles of 256 weight rows: each warpgroup has two slabs of 64. Rows lane / 4 and
// lane / 4 + 8 of every 16 are gate and up of one channel, so a thread has both.
#pragma once

#include "gemm/consumer.cuh"
#include "gemm/swiglu_epilogue.cuh"

namespace longcat_ops::moe_gemm {

template <Operand kOperand, uint32_t kLargest>
struct SwigluTileMultiplier {
  static constexpr bool kScaled = kOperand == Operand::kFp8;

  template <uint32_t kWidth, uint32_t kPasses>
  LC_DEVICE static void multiply(const MoeSwigluGemmParams& p, uint32_t base, const Tile& tile,
                                 device::Pipeline& stages, bool& refused) {
    static_assert(kPasses == 1);
    // With few tokens there are registers for both slabs' products in flight, and for their scales at the same time.
    constexpr bool kFew = kWidth <= (kLargest > kSmallTokens ? 32 : 16);
    const SmemLayout& smem = p.gemm.smem;
    float sum[kSlabs][kWidth / 2] = {};
    const uint32_t blocks = count_blocks(p.gemm), first_slab = ptx::warp_index() / 4 * kSlabs;
    const uint64_t weights = device::descriptor_of(base + first_slab * (kWarpgroupRows * kBlockK));
    const uint64_t tokens = device::descriptor_of(base + smem.weight_bytes);
    for (uint32_t block = 0; block < blocks; ++block, stages.advance()) {
      const uint32_t at = stages.stage * (smem.stage_bytes / 16);
      const uint32_t scales = base + smem.scales + 4 * (2 * stages.stage * smem.max_tokens);
      stages.wait_full();  // precedes wgmma_fence, which orders operand reads after it
      float acc[kSlabs][kWidth / 2];
      if constexpr (kFew) {
        start_products<kOperand, kWidth>(weights + at, tokens + at, acc[0]);
        start_products<kOperand, kWidth>(weights + at + kWarpgroupRows * kBlockK / 16, tokens + at, acc[1]);
        if constexpr (kScaled) {
          add_products<kWidth, 2, 1, kFew>(acc[0], scales, sum[0], 4 * smem.max_tokens);
          add_products<kWidth, 2, 0, kFew>(acc[1], scales, sum[1], 4 * smem.max_tokens);
        } else {
          device::add_products<1>(acc[0], sum[0]);
          device::add_products<0>(acc[1], sum[1]);
        }
      } else {
        LC_UNROLL
        for (uint32_t slab = 0; slab < kSlabs; ++slab) {
          start_products<kOperand, kWidth>(weights + at + slab * (kWarpgroupRows * kBlockK / 16), tokens + at,
                                           acc[slab]);
          if constexpr (kScaled) {
            add_products<kWidth, 2, 0, kFew>(acc[slab], scales, sum[slab], 4 * smem.max_tokens);
          } else {
            device::add_products<0>(acc[slab], sum[slab]);
          }
        }
      }
      device::arrive_warp(stages.empty());
    }
    if constexpr (!kScaled) {
      if (refused) refuse(sum[0]), refuse(sum[1]);
    }
    store_swiglu_tile<kWidth>(p, base, tile, sum);
  }
};

template <Operand kOperand, uint32_t kLargest>
LC_DEVICE void consume_swiglu(const MoeSwigluGemmParams& p, uint32_t base) {
  ptx::grid_dependency_wait();  // before anything is stored
  device::trace(device::TracedKernel::kSwigluGemm, device::TracePoint::kReady);
  TileQueue queue(p.gemm.smem, base);
  device::Pipeline stages = stages_of(p.gemm, base);
  for (Tile tile = queue.pop<true>(); tile.tokens != 0; tile = queue.pop<true>()) {
    bool refused = false;  // with scales, they carry it
    if constexpr (kOperand == Operand::kBf16) refused = is_refused<Cluster::kNone>(p.gemm, tile);
    visit_bucket<SwigluTileMultiplier<kOperand, kLargest>, kLargest>(bucket_for(tile.tokens), p, base, tile, stages,
                                                                     refused);
  }
  ptx::bulk_wait_read<0>();  // shared memory must outlive the copies that read it
}

}  // namespace longcat_ops::moe_gemm
