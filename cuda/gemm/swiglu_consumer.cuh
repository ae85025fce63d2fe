// Multiplies as consumer.cuh does, a tile of 256 weight rows: each warpgroup has two slabs of 64. Rows lane / 4 and
// lane / 4 + 8 of 16 are gate and up of a channel, so a thread has both.
#pragma once

#include "gemm/consumer.cuh"
#include "gemm/swiglu_epilogue.cuh"

namespace longcat_ops::moe_gemm {

template <uint32_t kWidth>
LC_DEVICE void multiply_swiglu_tile(const MoeSwigluGemmParams& p, uint32_t base, const Tile& tile,
                                    device::Pipeline& stages) {
  const SmemPlan& smem = p.gemm.smem;
  float sum[kSlabs][kWidth / 2] = {};
  const uint32_t blocks = count_blocks(p.gemm), first_slab = ptx::warp_index() / 4 * kSlabs;
  for (uint32_t block = 0; block < blocks; ++block, stages.advance()) {
    const uint32_t stage = base + stages.stage * smem.stage_bytes;
    const uint32_t scales = base + smem.scales + 4 * (2 * stages.stage * smem.max_tokens);
    stages.wait_full();  // before wgmma_fence, which orders the operands after it
    LC_UNROLL
    for (uint32_t slab = 0; slab < kSlabs; ++slab)
      multiply_block<kWidth, 2>(stage + (first_slab + slab) * (kWarpgroupRows * kBlockK), stage + smem.weight_bytes,
                                scales, sum[slab], 4 * smem.max_tokens);
    device::arrive_warp(stages.empty());
  }
  store_swiglu_tile<kWidth>(p, base, tile, sum);
}

template <uint32_t kLargest>
LC_DEVICE void consume_swiglu(const MoeSwigluGemmParams& p, uint32_t base) {
  ptx::grid_dependency_wait();  // before anything is stored
  TileQueue queue(p.gemm.smem, base);
  device::Pipeline stages = stages_of(p.gemm, base);
  for (Tile tile = queue.pop<true>(); tile.tokens != 0; tile = queue.pop<true>()) {
    const uint32_t bucket = bucket_for(tile.tokens);
    if constexpr (kLargest > kSmallTokens) {
      switch (bucket) {
        case 48: multiply_swiglu_tile<48>(p, base, tile, stages); continue;
        case 64: multiply_swiglu_tile<64>(p, base, tile, stages); continue;
        case 96: multiply_swiglu_tile<96>(p, base, tile, stages); continue;
        case 128: multiply_swiglu_tile<128>(p, base, tile, stages); continue;
        default: break;
      }
    }
    switch (bucket) {
      case 8: multiply_swiglu_tile<8>(p, base, tile, stages); break;
      case 16: multiply_swiglu_tile<16>(p, base, tile, stages); break;
      case 24: multiply_swiglu_tile<24>(p, base, tile, stages); break;
      default: multiply_swiglu_tile<32>(p, base, tile, stages); break;
    }
  }
  ptx::bulk_wait_read<0>();  // shared memory outlives its readers
}

}  // namespace longcat_ops::moe_gemm
