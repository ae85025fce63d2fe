// Consumers. Weights are the A operand of wgmma, 64 rows per warpgroup; tokens are the B operand, as many columns as
// the tile's bucket has. Tensor cores truncate their sums, to about 14 bits with e4m3 and 25 with bf16, so those of
// each stage, 128 bytes of K, are added to sums in float32.
#pragma once

#include <type_traits>

#include "device/trace.cuh"
#include "device/vector_io.cuh"
#include "device/wgmma_tile.cuh"
#include "gemm/epilogue.cuh"
#include "gemm/producer.cuh"
#include "gemm/split.cuh"

namespace longcat_ops::moe_gemm {

// Calls Multiplier::multiply<width, passes>(arguments...) with the code compiled for the bucket. kLargest: most tokens
// per tile. NOTE: a lambda in place of Multiplier compiles to other machine code.
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

// Starts one stage, 64 weight rows times kWidth tokens, as the newest group of products.
template <Operand kOperand, uint32_t kWidth>
LC_DEVICE void start_products(uint64_t weights, uint64_t tokens, float (&acc)[kWidth / 2]) {
  ptx::wgmma_fence();
  LC_UNROLL
  for (uint32_t k = 0; k < kBlockK; k += 32) {  // bytes: 32 of e4m3, 16 of bf16
    if constexpr (kOperand == Operand::kFp8) {
      ptx::wgmma_e4m3<kWidth>(acc, weights + k / 16, tokens + k / 16, k > 0);
    } else {
      ptx::wgmma_bf16<kWidth>(acc, weights + k / 16, tokens + k / 16, k > 0);
    }
  }
  ptx::wgmma_commit();
}

// Waits for a group of products, with up to kPending newer ones in flight, and adds it, times both scales, to the sums.
// kPanels = 2: rows 8 .. 15 of every 16 have scales of their own, `panel` bytes further. kEarly: loads all scales while
// the products run, if there are registers for them. NOTE: every kWidth does the same operations in the same order, so
// a result does not depend on the bucket.
template <uint32_t kWidth, uint32_t kPanels, int kPending, bool kEarly>
LC_DEVICE void add_products(float (&acc)[kWidth / 2], uint32_t scales, float (&sum)[kWidth / 2], uint32_t panel = 0) {
  constexpr uint32_t kColumns = kWidth / 8;
  const uint32_t at = scales + ptx::lane_index() % 4 * 8;
  ptx::Vec8 scale[kPanels][kColumns];
  const auto load = [&](uint32_t c) {
    LC_UNROLL
    for (uint32_t j = 0; j < kPanels; ++j) scale[j][c] = ptx::load_shared<ptx::Vec8>(at + j * panel + 32 * c);
  };
  if constexpr (kEarly) {
    LC_UNROLL
    for (uint32_t c = 0; c < kColumns; ++c) load(c);
  }
  ptx::wgmma_wait_for<kPending>(acc);
  LC_UNROLL
  for (uint32_t c = 0; c < kColumns; ++c) {
    if constexpr (!kEarly) load(c);
    LC_UNROLL
    for (uint32_t j = 0; j < 2; ++j) {
      const ptx::Vec8 both = scale[j * (kPanels - 1)][c];
      float *to = sum + 4 * c + 2 * j, *from = acc + 4 * c + 2 * j;
      to[0] = ptx::fma_rn(from[0], device::bits_float(both.x), to[0]);
      to[1] = ptx::fma_rn(from[1], device::bits_float(both.y), to[1]);
    }
  }
}

template <Cluster kCluster>
LC_DEVICE void release(const device::Pipeline& stages) {
  if constexpr (kCluster == Cluster::kPairs) {
    device::arrive_warp_pair(stages.empty());
  } else {
    device::arrive_warp(stages.empty());
  }
}

template <Operand kOperand, Cluster kCluster>
struct TileMultiplier {
  static constexpr bool kScaled = kOperand == Operand::kFp8;

  // With few tokens the products are short: a block's products run while the previous block's are added to the sums.
  template <uint32_t kWidth>
  LC_DEVICE static void multiply_ahead(const MoeGemmParams& p, uint32_t base, uint32_t warpgroup, uint32_t count,
                                       device::Pipeline& stages, float (&sum)[kWidth / 2]) {
    if (kCluster == Cluster::kSplit && count == 0) return;
    const uint64_t weights = device::descriptor_of(base + warpgroup * (kWarpgroupRows * kBlockK));
    const uint64_t tokens = device::descriptor_of(base + p.smem.weight_bytes);
    float acc[2][kWidth / 2];
    device::Pipeline ahead = stages;  // the next block to start
    const auto start = [&](float (&into)[kWidth / 2]) {
      const uint32_t at = ahead.stage * (p.smem.stage_bytes / 16);
      ahead.wait_full();  // precedes wgmma_fence, which orders operand reads after it
      start_products<kOperand, kWidth>(weights + at, tokens + at, into);
      ahead.advance();
    };
    const auto finish = [&](float (&from)[kWidth / 2], auto pending) {
      if constexpr (kScaled) {
        add_products<kWidth, 1, pending, true>(from, base + p.smem.scales + 4 * stages.stage * p.smem.max_tokens, sum);
      } else {
        device::add_products<pending>(from, sum);
      }
      release<kCluster>(stages);
      stages.advance();
    };
    constexpr std::integral_constant<int, 1> kOne;
    constexpr std::integral_constant<int, 0> kNone;
    start(acc[0]);
    for (; count > 2; count -= 2) {
      start(acc[1]);
      finish(acc[0], kOne);
      start(acc[0]);
      finish(acc[1], kOne);
    }
    if (count == 2) {
      start(acc[1]);
      finish(acc[0], kOne);
      finish(acc[1], kNone);
    } else {
      finish(acc[0], kNone);
    }
  }

  template <uint32_t kWidth, uint32_t kPasses>
  LC_DEVICE static void multiply(const MoeGemmParams& p, uint32_t base, const OutputTile& tile,
                                 device::Pipeline& stages, PieceExchange& pieces) {
    float sum[kPasses][kWidth / 2] = {};
    const BlockRange blocks = block_range<kCluster>(p);
    if constexpr (kWidth <= kSmallTokens && kPasses == 1) {
      multiply_ahead<kWidth>(p, base, tile.warpgroup, blocks.end - blocks.begin, stages, sum[0]);
    } else {
      const uint64_t weights = device::descriptor_of(base + tile.warpgroup * (kWarpgroupRows * kBlockK));
      const uint64_t tokens = device::descriptor_of(base + p.smem.weight_bytes);
      for (uint32_t block = blocks.begin; block < blocks.end; ++block, stages.advance()) {
        const uint32_t at = stages.stage * (p.smem.stage_bytes / 16);
        const uint32_t scales = base + p.smem.scales + 4 * stages.stage * p.smem.max_tokens;
        stages.wait_full();  // precedes wgmma_fence, which orders operand reads after it
        LC_UNROLL
        for (uint32_t i = 0; i < kPasses; ++i) {
          float acc[kWidth / 2];
          start_products<kOperand, kWidth>(weights + at, tokens + at + i * kWidth * kBlockK / 16, acc);
          if constexpr (kScaled) {
            add_products<kWidth, 1, 0, kWidth <= 64>(acc, scales + 4 * i * kWidth, sum[i]);
          } else {
            device::add_products<0>(acc, sum[i]);
          }
        }
        release<kCluster>(stages);
      }
    }
    if constexpr (kCluster == Cluster::kSplit)
      if (!pieces.add_up(p, sum[0])) return;
    LC_UNROLL
    for (uint32_t i = 0; i < kPasses; ++i) {
      if constexpr (!kScaled)
        if (tile.refused) refuse(sum[i]);
      store_tile(p, base, tile, i * kWidth, sum[i]);
    }
  }
};

template <Operand kOperand, uint32_t kLargest, Cluster kCluster>
LC_DEVICE void consume(const MoeGemmParams& p, uint32_t base) {
  ptx::grid_dependency_wait();  // before anything is stored
  device::trace(device::TracedKernel::kGemm, device::TracePoint::kReady);
  if constexpr (kCluster == Cluster::kPairs) ptx::cluster_wait_acquire();
  TileQueue queue(p.smem, base);
  device::Pipeline stages = stages_of(p, base);
  PieceExchange pieces(p.smem, base);
  const uint32_t warpgroup = ptx::warp_index() / 4;
  for (Tile tile = queue.pop<true>(); tile.tokens != 0; tile = queue.pop<true>()) {
    const uint32_t column = tile.weight_tile * p.smem.tile_rows + warpgroup * kWarpgroupRows;
    const uint32_t columns = column >= p.n ? 0 : p.n - column < kWarpgroupRows ? p.n - column : kWarpgroupRows;
    OutputTile out{tile.group, tile.row, tile.tokens, column, columns, warpgroup};
    if constexpr (kOperand == Operand::kBf16) out.refused = is_refused<kCluster>(p, tile);
    visit_bucket<TileMultiplier<kOperand, kCluster>, kLargest>(bucket_for(tile.tokens), p, base, out, stages, pieces);
  }
  ptx::bulk_wait_read<0>();  // shared memory must outlive the copies that read it
  if (kCluster == Cluster::kSplit && p.split > 1) pieces.finish();
}

}  // namespace longcat_ops::moe_gemm
