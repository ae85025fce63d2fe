// How mla_query runs: a pure function of the sizes, for the launcher and for `explain`.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/constants.h"
#include "common/numeric.h"
#include "device/barrier_pair.h"

namespace longcat_ops {
namespace mla_query {

constexpr uint32_t kWarpgroupRows = 64;  // of latent: the M of wgmma
constexpr uint32_t kMostWarpgroups = 4;  // of a block, that multiply
constexpr uint32_t kStageBytes = 128;    // of each row: 64 of bf16
constexpr uint32_t kStageColumns = kStageBytes / 2;
constexpr uint32_t kMostTokens = 64;    // of a chunk
constexpr uint32_t kCopiedTokens = 32;  // of a chunk, if warps copy the operands
constexpr uint32_t kCopyWarps = 4;
constexpr uint32_t kStorePitch = 144;  // bytes per token of 64 bf16, with 16 of padding against bank conflicts

// Stages of both rings, and the SMs that blocks are made for; few in the emulator, so that small tests wrap around the
// rings, read weights again and share a head among blocks of every size.
#ifdef LC_EMULATE
constexpr uint32_t kWeightStages = 2, kTokenStages = 3, kSms = 8;
#else
constexpr uint32_t kWeightStages = 3, kTokenStages = 8, kSms = kH100Sms;
#endif

// Parts of shared memory, in bytes. Stages of weights come first, each with 64 rows for every warpgroup.
struct SmemLayout {
  uint32_t tokens, output, weight_barriers, token_barriers, bytes;
};

constexpr SmemLayout make_smem_layout(uint32_t width, uint32_t warpgroups, uint32_t weight_stages,
                                      uint32_t token_stages) {
  SmemLayout layout{};
  layout.tokens = weight_stages * warpgroups * kWarpgroupRows * kStageBytes;
  layout.output = layout.tokens + token_stages * width * kStageBytes;
  layout.weight_barriers = layout.output + warpgroups * width * kStorePitch;
  layout.token_barriers = layout.weight_barriers + weight_stages * device::kBarrierPairBytes;
  layout.bytes = layout.token_barriers + token_stages * device::kBarrierPairBytes;
  return layout;
}
static_assert(make_smem_layout(kMostTokens, kMostWarpgroups, kWeightStages, kTokenStages).bytes <= kMaxBlockSmem);

}  // namespace mla_query

struct MlaQueryConfig {
  uint32_t width = 0;       // tokens of a chunk, rounded up to a width that is compiled
  uint32_t warpgroups = 0;  // of a block, 64 rows of latent each
  int64_t tiles = 0;        // blocks of a head
  uint32_t weight_stages = 0, token_stages = 0;
  bool resident = false;  // all of a block's weights are in shared memory at once, and read once
  int threads = 0;
  int64_t blocks = 0;
  mla_query::SmemLayout smem{};
};

// mapped: TMA reads the operands; otherwise warps copy them.
inline MlaQueryConfig choose_mla_query_config(int64_t tokens, int64_t heads, int64_t latent, int64_t nope,
                                              bool mapped) {
  using namespace mla_query;
  MlaQueryConfig config;
  if (tokens == 0 || heads == 0) return config;
  // Halves blocks while that puts more SMs to work, or rows to no use.
  config.warpgroups = kMostWarpgroups;
  const auto tiles = [&] { return ceil_div(latent, config.warpgroups * kWarpgroupRows); };
  while (config.warpgroups > 1 && (latent <= config.warpgroups / 2 * kWarpgroupRows || 2 * heads * tiles() <= kSms))
    config.warpgroups /= 2;
  config.tiles = tiles();
  config.blocks = heads * config.tiles;
  config.width = mapped ? 8 : kCopiedTokens;
  while (mapped && config.width < tokens && config.width < kMostTokens) config.width *= 2;
  const int64_t stages = ceil_div(nope, kStageColumns), chunks = ceil_div(tokens, config.width);
  config.resident = stages <= kWeightStages;
  config.weight_stages = static_cast<uint32_t>(std::min<int64_t>(stages, kWeightStages));
  config.token_stages = static_cast<uint32_t>(std::min<int64_t>(stages * chunks, kTokenStages));
  config.threads = kWarpLanes * static_cast<int>(4 * config.warpgroups + (mapped ? 1 : kCopyWarps));
  config.smem = make_smem_layout(config.width, config.warpgroups, config.weight_stages, config.token_stages);
  return config;
}

}  // namespace longcat_ops
