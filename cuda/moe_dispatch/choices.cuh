// Work distribution of the kernels that go over tokens, and a token's choices that have a row.
//
// A warp takes 32 chunks of one token, so a token of 6144 columns takes 24 warps and a narrow one takes one.
#pragma once

#include <cstdint>

#include "common/constants.h"
#include "device/vector_io.cuh"
#include "moe_dispatch/config.h"
#include "ptx/ptx.cuh"

namespace longcat_ops::moe_dispatch {

constexpr uint32_t kDispatchWarps = kDispatchThreads / kWarpLanes;
static_assert(kMaxTopK <= kWarpLanes);  // a lane per choice

struct TokenWarps {
  int64_t tokens;
  uint32_t chunks;  // per token
  uint32_t cells;   // warps per token
};

struct WarpPlace {
  int64_t token;
  uint32_t cell;
  bool inside;  // there is such a token; the same for the whole warp
};

inline TokenWarps make_token_warps(int64_t tokens, int64_t chunks) {
  return {tokens, static_cast<uint32_t>(chunks), static_cast<uint32_t>((chunks + 31) / 32)};
}

// NOTE: 32 bits suffice for a warp's number: moe_plan keeps T * K below that, and 2^32 warps of tokens that take
// several exceed any device's memory.
LC_DEVICE WarpPlace locate(const TokenWarps& warps) {
  const uint32_t warp = ptx::block_index() * kDispatchWarps + ptx::warp_index();
  const uint32_t token = warp / warps.cells;
  return {token, warp - token * warps.cells, token < warps.tokens};
}

// A plan as moe_plan makes it.
struct PlanView {
  const int32_t* row_of;  // [T, top_k]
  const int32_t* src_of;  // [rows]
  int64_t rows;
  uint32_t top_k;
};

struct PlanChoice {
  int64_t source;  // t * top_k + k
  int32_t row;     // -1: none
};

// Lane k gets choice k of this token.
LC_DEVICE PlanChoice load_choice(const PlanView& plan, int64_t token) {
  const uint32_t lane = ptx::lane_index();
  const int64_t source = token * plan.top_k + lane;
  const int32_t row = lane < plan.top_k ? ptx::load_global(plan.row_of + source) : -1;
  return {source, row < plan.rows ? row : -1};
}

// Whether src_of agrees with row_of on the row, so that two choices never write one row.
LC_DEVICE bool is_agreed(const PlanView& plan, const PlanChoice& choice) {
  return choice.row >= 0 && ptx::load_global(plan.src_of + choice.row) == choice.source;
}

// Each warp has a list in shared memory.
template <class Entry>
constexpr uint32_t kListBytes = kMaxTopK * sizeof(Entry);

template <class Entry>
LC_DEVICE uint32_t list_of_warp() {
  return ptx::dynamic_smem_base() + kListBytes<Entry> * ptx::warp_index();
}

// Lane k passes choice k. The choices to keep become the list's entries, in the order of k. Returns their number.
template <class Entry>
LC_DEVICE uint32_t list_choices(uint32_t list, bool keep, const Entry& entry) {
  const uint32_t kept = ptx::ballot(keep);
  const uint32_t before = ptx::popcount(kept & ((1u << ptx::lane_index()) - 1));
  if (keep) ptx::store_shared(list + static_cast<uint32_t>(sizeof(Entry)) * before, entry);
  ptx::warp_sync();
  return ptx::popcount(kept);
}

template <class Entry>
LC_DEVICE Entry choice_of_list(uint32_t list, uint32_t i) {
  return ptx::load_shared<Entry>(list + static_cast<uint32_t>(sizeof(Entry)) * i);
}

}  // namespace longcat_ops::moe_dispatch
