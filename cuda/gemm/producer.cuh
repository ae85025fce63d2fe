// Fills the stages: one warp each for weights, activations and, with FP8, scales. A stage is full when all have
// arrived.
#pragma once

#include "device/fp8_scale.cuh"
#include "device/vector_io.cuh"
#include "gemm/scheduler.cuh"

namespace longcat_ops::moe_gemm {

LC_DEVICE uint32_t count_blocks(const MoeGemmParams& p) { return (p.k + kBlockK - 1) / kBlockK; }

// Blocks of K: all, or the piece of this block of the cluster; the last pieces may be empty.
struct BlockRange {
  uint32_t begin, end;
};

template <Cluster kCluster>
LC_DEVICE BlockRange block_range(const MoeGemmParams& p) {
  const uint32_t blocks = count_blocks(p);
  if constexpr (kCluster != Cluster::kSplit) return {0, blocks};
  const uint32_t piece = (blocks + p.split - 1) / p.split, begin = ptx::cluster_rank() * piece;
  return {begin < blocks ? begin : blocks, begin + piece < blocks ? begin + piece : blocks};
}

LC_DEVICE device::Pipeline stages_of(const MoeGemmParams& p, uint32_t base) {
  return device::Pipeline(base + p.smem.barriers + ring_offset(p.smem, Ring::kStages), p.smem.stages);
}

// If no tensor map can describe the rows (addresses or strides off 16 bytes), a warp copies them as TMA would: rows of
// 128 bytes, 16-byte chunks swizzled, zeros beyond `valid` rows and k bytes.
LC_DEVICE void copy_block(uint32_t to, const Stack<const uint8_t>& from, uint32_t group, uint32_t row, uint32_t rows,
                          uint32_t valid, uint32_t column, uint32_t k) {
  const bool wide = ((reinterpret_cast<uintptr_t>(from.data) | from.group_stride | from.row_stride) & 7) == 0;
  for (uint32_t i = ptx::lane_index(); i < rows * 8; i += 32) {
    const uint32_t r = i / 8, chunk = i % 8;
    ptx::Vec8 half[2] = {};
    if (r < valid) {
      const uint8_t* data = from.at(group, row + r);
      LC_UNROLL
      for (uint32_t h = 0; h < 2; ++h) {
        const uint32_t at = column + 16 * chunk + 8 * h;  // k is a multiple of 8
        if (at < k) half[h] = wide ? device::load_codes<true>(data + at) : device::load_codes<false>(data + at);
      }
    }
    ptx::store_shared(to + kBlockK * r + 16 * (chunk ^ r % 8), ptx::Vec16{half[0].x, half[0].y, half[1].x, half[1].y});
  }
  ptx::fence_proxy_async_shared();  // wgmma reads through the async proxy
}

// With kTma one thread calls produce_weights or produce_tokens, else a warp. L2 evicts first the weights that only one
// tile needs, and tokens last.
template <bool kTma, Cluster kCluster>
LC_DEVICE void produce_weights(const MoeGemmParams& p, uint32_t base) {
  if constexpr (kTma) ptx::prefetch_tensormap(&p.weight_map);
  [[maybe_unused]] const uint64_t once = ptx::create_policy_evict_first();
  TileQueue queue(p.smem, base);
  device::Pipeline stages = stages_of(p, base);
  const BlockRange blocks = block_range<kCluster>(p);
  for (Tile tile = queue.pop<!kTma>(); tile.tokens != 0; tile = queue.pop<!kTma>()) {
    const uint32_t row = tile.weight_tile * p.smem.tile_rows;
    for (uint32_t block = blocks.begin; block < blocks.end; ++block, stages.advance()) {
      const uint32_t to = base + stages.stage * p.smem.stage_bytes;
      stages.wait_empty();
      if constexpr (kTma) {
        ptx::mbarrier_arrive_expect_tx(stages.full(), p.smem.weight_bytes);
        const int32_t at[] = {static_cast<int32_t>(block * kBlockK), static_cast<int32_t>(row),
                              static_cast<int32_t>(tile.group)};
        if (tile.shared) {
          ptx::tma_load(to, &p.weight_map, stages.full(), at);
        } else {
          ptx::tma_load(to, &p.weight_map, stages.full(), at, once);
        }
      } else {
        copy_block(to, p.weight, tile.group, row, p.smem.tile_rows, p.n - row, block * kBlockK, p.k);
        device::arrive_warp(stages.full());
      }
    }
  }
}

// Loads all columns of the bucket. Those beyond the tile's tokens are other groups' rows, or zeros: a column of the
// product depends on its own row alone, and theirs are not stored. In a pair the first block loads half of the columns,
// in units of 8, and the second the rest, each for both. A stage is empty when both have released it.
template <bool kTma, Cluster kCluster>
LC_DEVICE void produce_tokens(const MoeGemmParams& p, uint32_t base) {
  constexpr bool kPairs = kCluster == Cluster::kPairs;
  if constexpr (kTma)
    for (const ptx::TensorMap& map : p.token_map) ptx::prefetch_tensormap(&map);
  ptx::grid_dependency_wait();
  [[maybe_unused]] const uint64_t often = ptx::create_policy_evict_last();
  TileQueue queue(p.smem, base);
  device::Pipeline stages = stages_of(p, base);
  const BlockRange blocks = block_range<kCluster>(p);
  const uint32_t rank = kPairs ? ptx::cluster_rank() : 0;
  for (Tile tile = queue.pop<!kTma>(); tile.tokens != 0; tile = queue.pop<!kTma>()) {
    const uint32_t bucket = bucket_for(tile.tokens);
    const int32_t matrix = p.rows.layout == RowLayout::kMasked ? tile.group : 0;
    for (uint32_t block = blocks.begin; block < blocks.end; ++block, stages.advance()) {
      const uint32_t to = base + stages.stage * p.smem.stage_bytes + p.smem.weight_bytes;
      stages.wait_empty();
      if constexpr (kTma) {
        ptx::mbarrier_arrive_expect_tx(stages.full(), bucket * kBlockK);
        const auto load = [&](uint32_t done, const ptx::TensorMap* map) {
          const int32_t at[] = {static_cast<int32_t>(block * kBlockK), static_cast<int32_t>(tile.row + done), matrix};
          if constexpr (kPairs) {
            ptx::tma_load_multicast(to + done * kBlockK, map, stages.full(), at, 0b11, often);
          } else {
            ptx::tma_load(to + done * kBlockK, map, stages.full(), at, often);
          }
        };
        const uint32_t half = (bucket + 15) / 16 * 8, end = kPairs && rank == 0 ? half : bucket;
        uint32_t done = rank * half;
        for (; done + 128 <= end; done += 128) load(done, &p.token_map[2]);
        for (; done + 32 <= end; done += 32) load(done, &p.token_map[1]);
        for (; done < end; done += 8) load(done, &p.token_map[0]);
      } else {
        copy_block(to, p.tokens, tile.group, tile.row, bucket, tile.tokens, block * kBlockK, p.k);
        device::arrive_warp(stages.full());
      }
    }
  }
  ptx::grid_dependency_launch();  // the last loads are issued
  // The other block of a pair arrives here until it has released the last stages; this block's barriers must last as
  // long.
  if constexpr (kPairs)
    for (uint32_t i = 0; i < p.smem.stages; ++i, stages.advance()) stages.wait_empty();
}

// Called by a warp: lane l has the tokens l, l + 32, ... It multiplies both scales once, so the consumers' FMA is the
// only other operation. It runs four blocks ahead, because each load waits for L2 or, with column-major scales, for a
// line of its own: in registers where they suffice, else one block in registers and the rest prefetched into L2.
// Strides are arbitrary. kPanels: rows of the weight's scales per tile, each with its own products.
template <uint32_t kLargest, Cluster kCluster, uint32_t kPanels>
LC_DEVICE void produce_scales(const MoeGemmParams& p, uint32_t base) {
  constexpr uint32_t kTokens = kLargest / 32;
  constexpr uint32_t kAhead =
      kLargest > kSmallTokens ? 1 : 4;  // blocks in registers: as many as there are registers for
  constexpr uint32_t kL2Ahead = 4;      // blocks in L2
  ptx::grid_dependency_wait();
  TileQueue queue(p.smem, base);
  device::Pipeline stages = stages_of(p, base);
  const BlockRange blocks = block_range<kCluster>(p);
  const uint32_t lane = ptx::lane_index();
  for (Tile tile = queue.pop<true>(); tile.tokens != 0; tile = queue.pop<true>()) {
    const uint32_t bucket = bucket_for(tile.tokens);
    const uint32_t row = tile.weight_tile * p.smem.tile_rows;
    const float* weight = p.weight_scale.at(tile.group, (row < p.n ? row : 0) / kBlockK);  // no rows: any scale
    const float* tokens = p.token_scale.at(tile.group, tile.row + lane);
    const bool refused = is_refused<kCluster>(p, tile);
    float weight_scale[kAhead][kPanels], token_scale[kAhead][kTokens] = {};
    const auto weight_at = [&](uint32_t j, uint32_t block) {
      return weight + j * p.weight_scale.row_stride + block * p.weight_scale.column_stride;
    };
    const auto token_at = [&](uint32_t i, uint32_t block) {
      return tokens + 32 * i * p.token_scale.row_stride + block * p.token_scale.column_stride;
    };
    const auto load = [&](uint32_t block, uint32_t to) {
      LC_UNROLL
      for (uint32_t j = 0; j < kPanels; ++j) weight_scale[to][j] = ptx::load_global(weight_at(j, block));
      LC_UNROLL
      for (uint32_t i = 0; i < kTokens; ++i)
        if (lane + 32 * i < tile.tokens) token_scale[to][i] = ptx::load_global(token_at(i, block));
    };
    const auto prefetch = [&](uint32_t block) {
      if (lane < kPanels) ptx::prefetch_global_l2(weight_at(lane, block));
      LC_UNROLL
      for (uint32_t i = 0; i < kTokens; ++i)
        if (lane + 32 * i < tile.tokens) ptx::prefetch_global_l2(token_at(i, block));
    };
    LC_UNROLL
    for (uint32_t i = 0; i < kAhead; ++i)
      if (blocks.begin + i < blocks.end) load(blocks.begin + i, i);
    for (uint32_t first = blocks.begin; first < blocks.end; first += kAhead) {
      LC_UNROLL
      for (uint32_t at = 0; at < kAhead; ++at) {
        const uint32_t block = first + at;
        if (block >= blocks.end) break;
        float product[kPanels][kTokens];
        LC_UNROLL
        for (uint32_t j = 0; j < kPanels; ++j) {
          LC_UNROLL
          for (uint32_t i = 0; i < kTokens; ++i)
            product[j][i] = refused ? device::bits_float(device::kNanBits)
                                    : ptx::multiply_rn(weight_scale[at][j], token_scale[at][i]);
        }
        if (block + kAhead < blocks.end) load(block + kAhead, at);
        if (kAhead < kL2Ahead && block + kL2Ahead < blocks.end) prefetch(block + kL2Ahead);
        const uint32_t to = base + p.smem.scales + 4 * (kPanels * stages.stage * p.smem.max_tokens + lane);
        stages.wait_empty();
        LC_UNROLL
        for (uint32_t j = 0; j < kPanels; ++j) {
          LC_UNROLL
          for (uint32_t i = 0; i < kTokens; ++i)
            if (lane + 32 * i < bucket) ptx::store_shared(to + 4 * j * p.smem.max_tokens + 128 * i, product[j][i]);
        }
        device::arrive_warp(stages.full());
        stages.advance();
      }
    }
  }
}

}  // namespace longcat_ops::moe_gemm
