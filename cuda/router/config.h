// How router_gemm runs: a pure function of the sizes, for the launcher and for `explain`.
#pragma once

#include <cstdint>

#include "device/barrier_pair.h"

namespace longcat_ops {
namespace router {

constexpr uint32_t kTileExperts = 64;  // per block: the M of wgmma
constexpr uint32_t kStageBytes = 128;  // of each row: 64 of bf16
constexpr uint32_t kStageColumns = kStageBytes / 2;
constexpr uint32_t kTerms = 3;                           // of bf16, whose sum is a float32
constexpr uint32_t kMostTokens = 128;                    // per block
constexpr uint32_t kSlowTokens = 32;                     // per block, if warps copy or split the tokens
constexpr uint32_t kMostPieces = 8;                      // of K: blocks of a cluster
constexpr uint32_t kConsumerWarps = 4, kTokenWarps = 3;  // the latter only if warps copy or split the tokens

// Stages of the ring; few in the emulator, so that small tests wrap around it.
#ifdef LC_EMULATE
constexpr uint32_t kMaxStages = 3;
#else
constexpr uint32_t kMaxStages = 8;
#endif

// Sums of a block, before those of its cluster are added: f32 [tokens][kSumPitch], with padding against bank conflicts.
constexpr uint32_t kSumPitch = kTileExperts + 4;

// How tokens come into shared memory.
enum class Tokens {
  kMapped,  // bf16 by TMA
  kCopied,  // bf16 off 16 bytes, by warps
  kSplit,   // f32, which warps split into three terms
};

constexpr uint32_t terms(Tokens tokens) { return tokens == Tokens::kSplit ? kTerms : 1; }

// Parts of shared memory, in bytes. A stage has three tiles of weights, then the tokens' terms.
struct SmemLayout {
  uint32_t stage_bytes, stages;
  uint32_t sums, barriers, bytes;
};

constexpr SmemLayout make_smem_layout(uint32_t width, uint32_t token_terms, uint32_t stages) {
  SmemLayout layout{};
  layout.stage_bytes = (kTerms * kTileExperts + token_terms * width) * kStageBytes;
  layout.stages = stages;
  layout.sums = stages * layout.stage_bytes;
  layout.barriers = layout.sums + width * kSumPitch * 4;
  layout.bytes = layout.barriers + stages * device::kBarrierPairBytes;
  return layout;
}

constexpr int threads(Tokens tokens) {
  return static_cast<int>(32 * (kConsumerWarps + 1 + (tokens == Tokens::kMapped ? 0 : kTokenWarps)));
}

}  // namespace router

struct RouterGemmConfig {
  uint32_t width = 0;             // tokens of a block, rounded up to a width that is compiled
  uint32_t pieces = 1;            // of K. NOTE: of the sizes of the weight alone, since it changes the order of sums
  int64_t tiles = 0, chunks = 0;  // of experts and of tokens
  router::SmemLayout smem{};

  int64_t blocks() const { return tiles * chunks * pieces; }
};

RouterGemmConfig choose_router_gemm_config(int64_t tokens, int64_t experts, int64_t columns, router::Tokens how);

}  // namespace longcat_ops
