// Multiplies: weights are the A operand of wgmma, 64 rows for each warpgroup, tokens the B operand, as many columns as
// the tile's bucket has. After each 128 of K the tensor cores' sums are added to float32 ones: they keep about 14 bits.
#pragma once

#include "device/trace.cuh"
#include "device/vector_io.cuh"
#include "gemm/epilogue.cuh"
#include "gemm/producer.cuh"
#include "gemm/split.cuh"

namespace longcat_ops::moe_gemm {

// Multiplier::multiply<width, passes>(arguments...), with what a bucket has code for. kLargest: the most tokens of a
// tile. NOTE: a lambda in the place of Multiplier leads to other machine code.
template <class Multiplier, uint32_t kLargest, class... Arguments>
LC_DEVICE void visit_bucket(uint32_t bucket, Arguments&... arguments) {
  if constexpr (kLargest > kSmallTokens) {
    switch (bucket) {
      case 48: return Multiplier::template multiply<48, 1>(arguments...);
      case 64: return Multiplier::template multiply<64, 1>(arguments...);
      case 96: return Multiplier::template multiply<96, 1>(arguments...);
      case 128: return Multiplier::template multiply<128, 1>(arguments...);
      case 192:
        if constexpr (kLargest > kPassTokens) return Multiplier::template multiply<96, 2>(arguments...);
        break;
      case 256:
        if constexpr (kLargest > kPassTokens) return Multiplier::template multiply<128, 2>(arguments...);
        break;
      default: break;
    }
  }
  switch (bucket) {
    case 8: return Multiplier::template multiply<8, 1>(arguments...);
    case 16: return Multiplier::template multiply<16, 1>(arguments...);
    case 24: return Multiplier::template multiply<24, 1>(arguments...);
    default: return Multiplier::template multiply<32, 1>(arguments...);
  }
}

// One scale block of a pass: products of 64 rows with kWidth tokens, times both scales, onto the sums.
// kPanels = 2: rows 8 .. 15 of every 16 have other scales, `panel` bytes further on.
// NOTE: the same operations in the same order for every kWidth, so a result does not depend on the bucket.
template <uint32_t kWidth, uint32_t kPanels = 1>
LC_DEVICE void multiply_block(uint32_t weights, uint32_t tokens, uint32_t scales, float (&sum)[kWidth / 2],
                              uint32_t panel = 0) {
  float acc[kWidth / 2];
  ptx::wgmma_fence();
  LC_UNROLL
  for (uint32_t k = 0; k < kBlockK; k += 32)
    ptx::wgmma_e4m3<kWidth>(acc, ptx::make_descriptor(weights + k, 16, 1024, ptx::Swizzle::k128B),
                            ptx::make_descriptor(tokens + k, 16, 1024, ptx::Swizzle::k128B), k > 0);
  ptx::wgmma_commit();
  ptx::wgmma_wait_for<0>(acc);
  LC_UNROLL
  for (uint32_t c = 0; c < kWidth / 8; ++c) {
    const uint32_t at = scales + 32 * c + ptx::lane_index() % 4 * 8;
    const ptx::Vec8 scale = ptx::load_shared<ptx::Vec8>(at);
    ptx::Vec8 second = scale;
    if constexpr (kPanels == 2) second = ptx::load_shared<ptx::Vec8>(at + panel);
    const float even = device::bits_float(scale.x), odd = device::bits_float(scale.y);
    sum[4 * c] = ptx::fma_rn(acc[4 * c], even, sum[4 * c]);
    sum[4 * c + 1] = ptx::fma_rn(acc[4 * c + 1], odd, sum[4 * c + 1]);
    sum[4 * c + 2] = ptx::fma_rn(acc[4 * c + 2], device::bits_float(second.x), sum[4 * c + 2]);
    sum[4 * c + 3] = ptx::fma_rn(acc[4 * c + 3], device::bits_float(second.y), sum[4 * c + 3]);
  }
}

template <bool kSplit, bool kPairs>
struct TileMultiplier {
  template <uint32_t kWidth, uint32_t kPasses>
  LC_DEVICE static void multiply(const MoeGemmParams& p, uint32_t base, const OutputTile& tile,
                                 device::Pipeline& stages, PieceExchange& pieces) {
    float sum[kPasses][kWidth / 2] = {};
    const BlockRange blocks = block_range<kSplit>(p);
    for (uint32_t block = blocks.begin; block < blocks.end; ++block, stages.advance()) {
      const uint32_t stage = base + stages.stage * p.smem.stage_bytes;
      const uint32_t scales = base + p.smem.scales + 4 * stages.stage * p.smem.max_tokens;
      stages.wait_full();  // before wgmma_fence, which orders the operands after it
      LC_UNROLL
      for (uint32_t i = 0; i < kPasses; ++i)
        multiply_block<kWidth>(stage + tile.warpgroup * (kWarpgroupRows * kBlockK),
                               stage + p.smem.weight_bytes + i * kWidth * kBlockK, scales + 4 * i * kWidth, sum[i]);
      if (kPairs && p.paired) {
        device::arrive_warp_pair(stages.empty());
      } else {
        device::arrive_warp(stages.empty());
      }
    }
    if constexpr (kSplit)
      if (!pieces.add_up(p, sum[0])) return;
    LC_UNROLL
    for (uint32_t i = 0; i < kPasses; ++i) store_tile(p, base, tile, i * kWidth, sum[i]);
  }
};

template <uint32_t kLargest, bool kSplit>
LC_DEVICE void consume(const MoeGemmParams& p, uint32_t base) {
  constexpr bool kPairs = kLargest > kSmallTokens;
  ptx::grid_dependency_wait();  // before anything is stored
  device::trace(device::TracedKernel::kGemm, device::TracePoint::kReady);
  if (kPairs && p.paired) ptx::cluster_wait_acquire();
  TileQueue queue(p.smem, base);
  device::Pipeline stages = stages_of(p, base);
  PieceExchange pieces(p.smem, base);
  const uint32_t warpgroup = ptx::warp_index() / 4;
  for (Tile tile = queue.pop<true>(); tile.tokens != 0; tile = queue.pop<true>()) {
    const uint32_t column = tile.weight_tile * p.smem.tile_rows + warpgroup * kWarpgroupRows;
    const uint32_t columns = column >= p.n ? 0 : p.n - column < kWarpgroupRows ? p.n - column : kWarpgroupRows;
    const OutputTile out{tile.group, tile.row, tile.tokens, column, columns, warpgroup};
    visit_bucket<TileMultiplier<kSplit, kPairs>, kLargest>(bucket_for(tile.tokens), p, base, out, stages, pieces);
  }
  ptx::bulk_wait_read<0>();  // shared memory outlives its readers
  // And so it does barriers at which the cluster's first block still arrives, or the other one of a pair, which copies
  // until then. All other threads just end.
  if (kSplit || (kPairs && p.paired)) ptx::cluster_sync();
}

}  // namespace longcat_ops::moe_gemm
