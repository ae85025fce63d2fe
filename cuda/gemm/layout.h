// Tile shapes and the layout of shared memory. Plain C++: for the kernel, its launcher and the choice of a
// configuration.
#pragma once

#include <cstdint>

#include "common/constants.h"
#include "device/barrier_pair.h"

namespace longcat_ops::moe_gemm {

constexpr uint32_t kWarpgroupRows = 64;    // weight rows per consumer warpgroup: the M of wgmma
constexpr uint32_t kTileRows = 128;        // weight rows per tile: work for two warpgroups
constexpr uint32_t kFewTileRows = 64;      // weight rows per tile if tiles are fewer than blocks: for one warpgroup
constexpr uint32_t kBlockK = kQuantBlock;  // bytes of a row per stage; e4m3: columns per scale, rows per weight scale
constexpr uint32_t kMaxTokens = 256;       // per tile
constexpr uint32_t kPassTokens = 128;      // per tile, if its products take one pass over its weights
constexpr uint32_t kSmallTokens = 32;      // per tile of the small instance
constexpr uint32_t kStoreTokens = 64;      // per step of the epilogue
constexpr uint32_t kStorePitch = 144;      // bytes per token of 64 bf16, with 16 of padding against bank conflicts
constexpr uint32_t kWidePitch = 272;       // the same for 128 bf16
constexpr uint32_t kQueueTiles = 4;        // tiles that the scheduler may be ahead
constexpr uint32_t kThreads = 384;         // two consumer warpgroups, then four producer warps
// Registers per thread in the large instances: consumers take over what producers release. If the compiler's number for
// all threads is below kFewestRegisters, they wait for registers forever.
constexpr uint32_t kConsumerRegisters = 224, kProducerRegisters = 56;
constexpr uint32_t kFewestRegisters = (2 * kConsumerRegisters + kProducerRegisters) / 3;
static_assert(kFewestRegisters * 3 == 2 * kConsumerRegisters + kProducerRegisters && kFewestRegisters % 8 == 0);
constexpr uint32_t kStoreBarrier = 1;  // named barrier of the epilogue: for all consumers, or the first warpgroup
constexpr uint32_t kPieceBytes = kSmallTokens * 16 * 4;  // a warp's sums: f32, 16 weight rows

// What tokens and weights hold. Everything that moves them counts bytes, so sizes and strides along K are bytes.
enum class Operand {
  kFp8,   // e4m3, with scales 1x128 and 128x128
  kBf16,  // no scales
};

constexpr uint32_t operand_bytes(Operand operand) { return operand == Operand::kFp8 ? 1 : 2; }

// Warps that fill stages: weights, tokens and, with FP8, scales.
constexpr uint32_t producers(Operand operand) { return operand == Operand::kFp8 ? 3 : 2; }

// Stages of the ring of operands; few in the emulator, so that small tests wrap around it.
#ifdef LC_EMULATE
constexpr int kMaxStages = 3;
#else
constexpr int kMaxStages = 12;
#endif

// With SwiGLU.
constexpr uint32_t kSwigluTileRows = 2 * kQuantBlock;  // gate and up of the channels of h that share a scale
constexpr uint32_t kSwigluTokens = 128;                // most per tile
constexpr uint32_t kAmaxBytes = 32;  // per token: each consumer warp's largest |h|, then the token's scale

// Columns of the tile's products: tokens rounded up to a compiled width. wgmma has multiples of 8 up to 256, but above
// 128 a warpgroup cannot hold two sets of accumulators, so two passes of half the width go over the same weights.
constexpr uint32_t bucket_for(uint32_t tokens) {
  if (tokens <= 32) return (tokens + 7) / 8 * 8;
  if (tokens <= 64) return tokens <= 48 ? 48 : 64;
  if (tokens <= 128) return tokens <= 96 ? 96 : 128;
  return tokens <= 192 ? 192 : 256;
}

// What the blocks of a cluster share.
enum class Cluster {
  kNone,   // there are no clusters
  kSplit,  // tiles: each block has a piece of K
  kPairs,  // tokens: two blocks have neighbouring weight tiles, and each loads half of the tokens for both
};

// Tokens row .. row + tokens - 1 times one weight tile of a group. No tokens: there are no more tiles.
struct Tile {
  uint32_t group, row, tokens, weight_tile;
  bool shared = false;   // other tiles need the same weights
  bool refused = false;  // the groups' rows changed after they were first read: the tile's results are NaN
};

// A tile in the queue, packed so that one access moves it.
struct alignas(16) TileSlot {
  uint32_t group, row, tokens_and_flags, weight_tile;

  static constexpr uint32_t kShared = 1 << 16, kRefused = 1 << 17;
  static_assert(kMaxTokens < kShared);

  static constexpr TileSlot pack(const Tile& tile) {
    return {tile.group, tile.row, tile.tokens | (tile.shared ? kShared : 0) | (tile.refused ? kRefused : 0),
            tile.weight_tile};
  }
  constexpr Tile unpack() const {
    return {group,
            row,
            tokens_and_flags & (kShared - 1),
            weight_tile,
            (tokens_and_flags & kShared) != 0,
            (tokens_and_flags & kRefused) != 0};
  }
};

// Each stage has tile_rows * kBlockK bytes of weights, then max_tokens * kBlockK of activations, both swizzled in atoms
// of 1024 bytes. The stages come first.
struct SmemLayout {
  uint32_t tile_rows, max_tokens, stages;  // max_tokens is a bucket
  uint32_t consumer_warps;
  uint32_t weight_bytes, stage_bytes;
  uint32_t scales;  // FP8: f32 [stages, max_tokens], products of both scales; with SwiGLU [stages, 2, max_tokens]
  uint32_t output;  // store_bytes per consumer warpgroup; with SwiGLU all share one buffer
  uint32_t amax;    // with SwiGLU, if h is quantised: kAmaxBytes per token
  uint32_t store_bytes;
  uint32_t pieces;    // f32 sums of a tile, warp by warp, from each block of the cluster but the first
  uint32_t tiles;     // TileSlot [kQueueTiles]
  uint32_t barriers;  // of all rings; ring_offset locates each ring's
  uint32_t bytes;
};

// The rings through which roles hand over work. Their barriers lie in this order.
// NOTE: addresses are formed as base + barriers + ring_offset, in this order: another order costs instructions.
enum class Ring {
  kStages,  // operands of a block of K, from the producers to the consumers
  kTiles,   // the queue, from the scheduler to all other roles
  kPieces,  // sums, from each consumer warp to its counterpart in the cluster's first block: a pair per warp
};

// Bytes from the first barrier of all to the ring's first.
constexpr uint32_t ring_offset(const SmemLayout& layout, Ring ring) {
  const uint32_t pairs_before = ring == Ring::kStages  ? 0
                                : ring == Ring::kTiles ? layout.stages
                                                       : layout.stages + kQueueTiles;
  return device::kBarrierPairBytes * pairs_before;
}

// split: blocks of a cluster, each with a piece of K. quantised: h is e4m3 with scales, after SwiGLU.
constexpr SmemLayout make_smem_layout(Operand operand, uint32_t tile_rows, uint32_t max_tokens, uint32_t stages,
                                      uint32_t split = 1, bool quantised = true) {
  SmemLayout layout{};
  layout.tile_rows = tile_rows;
  layout.max_tokens = max_tokens;
  layout.stages = stages;
  const bool swiglu = tile_rows == kSwigluTileRows;
  layout.consumer_warps = tile_rows == kFewTileRows ? 4 : 8;
  layout.weight_bytes = tile_rows * kBlockK;
  layout.stage_bytes = layout.weight_bytes + max_tokens * kBlockK;
  layout.scales = stages * layout.stage_bytes;
  const uint32_t panels = operand == Operand::kFp8 ? (swiglu ? 2 : 1) : 0;
  layout.output = layout.scales + panels * stages * max_tokens * 4;
  layout.store_bytes = (swiglu || max_tokens < kStoreTokens ? max_tokens : kStoreTokens) *
                       (swiglu && !quantised ? kWidePitch : kStorePitch);
  layout.amax = layout.output + (swiglu ? 1 : layout.consumer_warps / 4) * layout.store_bytes;
  layout.pieces = layout.amax + (swiglu && quantised ? max_tokens * kAmaxBytes : 0);
  layout.tiles = layout.pieces + (split - 1) * layout.consumer_warps * kPieceBytes;
  layout.barriers = layout.tiles + kQueueTiles * sizeof(TileSlot);
  layout.bytes = layout.barriers + ring_offset(layout, Ring::kPieces) +
                 (split > 1 ? layout.consumer_warps : 0) * device::kBarrierPairBytes;
  return layout;
}

}  // namespace longcat_ops::moe_gemm
