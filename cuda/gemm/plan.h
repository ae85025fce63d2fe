// The shape of a tile and where things lie in shared memory. Plain C++: for the kernel, its launcher and the choice of
// a configuration.
#pragma once

#include <cstdint>

namespace longcat_ops::moe_gemm {

constexpr uint32_t kWarpgroupRows = 64;  // weight rows of a consumer warpgroup: those of a wgmma
constexpr uint32_t kTileRows = 128;      // weight rows of a tile, with work for two warpgroups
constexpr uint32_t kFewTileRows = 64;    // of a tile where there are fewer tiles than blocks: for one warpgroup
constexpr uint32_t kBlockK = 128;        // columns of a stage: those of one scale; and rows and columns of a weight's
constexpr uint32_t kMaxTokens = 256;     // of a tile
constexpr uint32_t kSmallTokens = 32;    // of a tile of the small instance
constexpr uint32_t kStoreTokens = 64;    // of one step of the epilogue
constexpr uint32_t kStorePitch = 144;    // bytes per token of 64 bf16: 16 more than they need, against bank conflicts
constexpr uint32_t kQueueTiles = 4;      // the scheduler is ahead by at most
constexpr uint32_t kThreads = 384;       // two consumer warpgroups, then four producer warps
constexpr uint32_t kMaxSmem = 232448;    // a block may have on sm_90
constexpr uint32_t kPieceBytes = kSmallTokens * 16 * 4;  // of a warp's sums: f32, 16 weight rows

// With SwiGLU.
constexpr uint32_t kSwigluTileRows = 256;  // of gate and up: 128 channels of h, which share a scale
constexpr uint32_t kSwigluTokens = 128;    // of a tile, at most
constexpr uint32_t kAmaxBytes = 32;        // per token: of each consumer warp the largest |h|; then the token's scale

// Columns of the tile's products: tokens rounded up to what there is code for. wgmma has multiples of 8 up to 256, but
// above 128 a warpgroup cannot hold two sets of accumulators: then two passes of half as many over the same weights.
constexpr uint32_t bucket_for(uint32_t tokens) {
  if (tokens <= 32) return (tokens + 7) / 8 * 8;
  if (tokens <= 64) return tokens <= 48 ? 48 : 64;
  if (tokens <= 128) return tokens <= 96 ? 96 : 128;
  return tokens <= 192 ? 192 : 256;
}

// Stages first: tile_rows * kBlockK of weights, then max_tokens * kBlockK of activations, both swizzled in atoms of
// 1024 bytes.
struct SmemPlan {
  uint32_t tile_rows, max_tokens, stages;  // max_tokens is a bucket
  uint32_t consumer_warps;
  uint32_t weight_bytes, stage_bytes;
  uint32_t scales;  // f32 [stages, max_tokens]: products of both scales; with SwiGLU [stages, 2, max_tokens]
  uint32_t output;  // per consumer warpgroup store_bytes; with SwiGLU all of them share
  uint32_t amax;    // with SwiGLU: kAmaxBytes per token
  uint32_t store_bytes;
  uint32_t pieces;    // f32, of each block of the cluster but the first: sums of a tile, consumer warps one by one
  uint32_t tiles;     // the scheduler's queue
  uint32_t barriers;  // of the stages, then of the queue, then of the pieces
  uint32_t bytes;
};

// split: blocks of a cluster, each with a piece of K.
constexpr SmemPlan make_smem_plan(uint32_t tile_rows, uint32_t max_tokens, uint32_t stages, uint32_t split = 1) {
  SmemPlan plan{};
  plan.tile_rows = tile_rows;
  plan.max_tokens = max_tokens;
  plan.stages = stages;
  const bool swiglu = tile_rows == kSwigluTileRows;
  plan.consumer_warps = tile_rows == kFewTileRows ? 4 : 8;
  plan.weight_bytes = tile_rows * kBlockK;
  plan.stage_bytes = plan.weight_bytes + max_tokens * kBlockK;
  plan.scales = stages * plan.stage_bytes;
  plan.output = plan.scales + (swiglu ? 2 : 1) * stages * max_tokens * 4;
  plan.store_bytes = (swiglu || max_tokens < kStoreTokens ? max_tokens : kStoreTokens) * kStorePitch;
  plan.amax = plan.output + (swiglu ? 1 : plan.consumer_warps / 4) * plan.store_bytes;
  plan.pieces = plan.amax + (swiglu ? max_tokens * kAmaxBytes : 0);
  plan.tiles = plan.pieces + (split - 1) * plan.consumer_warps * kPieceBytes;
  plan.barriers = plan.tiles + kQueueTiles * 16;
  plan.bytes = plan.barriers + (stages + kQueueTiles + (split > 1 ? plan.consumer_warps : 0)) * 16;
  return plan;
}

}  // namespace longcat_ops::moe_gemm
