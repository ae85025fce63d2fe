// Parameters of mla_decode's kernels, its workspace, and what both do with accumulators.
#pragma once

#include "device/math.cuh"
#include "device/vector_io.cuh"
#include "mla/decode_deal.cuh"

namespace longcat_ops::mla {

// What a block knows of each row: how many splits the first block of the row merged, which block that was, and how far
// apart blocks of one walk are. A block also says how many splits it kept unmerged.
struct Workspace {
  ptx::Vec16* merged;  // [rows]: {splits, block, stride, 0}
  uint32_t* raw;       // [blocks]
  float* slots;        // [blocks][1 + raw_splits][slot_floats]: merged, then unmerged
};

struct MlaDecodeParams {
  ptx::TensorMap query_map;  // bytes [tokens, heads, 2 * width], boxes of 64 heads
  ptx::TensorMap page_map;   // bytes [pages, 64, 2 * width], boxes of 64 rows
  Deal deal;
  Workspace workspace;
  uint16_t* out;  // bf16 [tokens, heads, latent], on 4 bytes
  int64_t stride_token, stride_head;
  float scale;  // of the scores, times log2(e)
  uint32_t heads, latent;
  DecodeSmem smem;
};

// The largest score of a head in log2, and the sum of its weights relative to it.
struct HeadState {
  float largest, weight;
};

LC_DEVICE HeadState empty_state() { return {device::bits_float(0xff800000u), 0.0f}; }

// Factors that bring two partial sums to their common largest score.
struct Factors {
  float keep, add;
};

LC_DEVICE float merge_sums(float all, float split, const Factors& factors) {
  return ptx::fma_rn(split, factors.add, ptx::multiply_rn(all, factors.keep));
}

// all += split. NOTE: both kernels merge with these two, so it does not matter which of them does.
LC_DEVICE Factors merge_states(HeadState& all, const HeadState& split) {
  const float largest = split.largest > all.largest ? split.largest : all.largest;
  const auto factor = [&](float own) { return own == largest ? 1.0f : ptx::exp2_unit(ptx::add_rn(own, -largest)); };
  const Factors factors{factor(all.largest), factor(split.largest)};
  all.weight = merge_sums(all.weight, split.weight, factors);
  all.largest = largest;
  return factors;
}

// Heads and columns of a consumer's accumulators: those of i = 4 j, ... lie at columns 8 j + {0, 1} of head `low`, then
// of head low + 8.
struct Place {
  uint32_t low, column;
};

LC_DEVICE Place place_of(uint32_t thread, uint32_t half) {
  const uint32_t lane = thread % 32;
  return {16 * (thread / 32 % 4) + lane / 4, thread / 128 * half + lane % 4 * 2};
}

template <uint32_t kHalf>
LC_DEVICE float* slot_of(const MlaDecodeParams& p, uint32_t block, uint32_t slot) {
  return p.workspace.slots + (int64_t{block} * (1 + p.deal.raw_splits) + slot) * slot_floats(kHalf);
}
LC_DEVICE ptx::Float4* fragment_at(float* slot, uint32_t thread, uint32_t j) {
  return reinterpret_cast<ptx::Float4*>(slot) + j * kMergeThreads + thread;
}
template <uint32_t kHalf>
LC_DEVICE float* states_of(float* slot) {
  return slot + kTileHeads * kValueGroups * kHalf;
}
template <uint32_t kHalf>
LC_DEVICE HeadState load_state(float* slot, uint32_t head) {
  const auto both = ptx::load_global(reinterpret_cast<const ptx::Vec8*>(states_of<kHalf>(slot)) + head);
  return {device::bits_float(both.x), device::bits_float(both.y)};
}

// Where a thread's accumulators go in the result: two columns of head `low` and of head low + 8, and so every 8
// columns.
struct Result {
  uint16_t* to[2];   // null: there is no such head
  uint32_t columns;  // that are left from there on
};

LC_DEVICE Result result_of(const MlaDecodeParams& p, uint32_t row, const Place& place) {
  const uint32_t head = row % p.deal.head_tiles * kTileHeads + place.low;
  uint16_t* to = p.out + row / p.deal.head_tiles * p.stride_token + head * p.stride_head + place.column;
  return {{head < p.heads ? to : nullptr, head + 8 < p.heads ? to + 8 * p.stride_head : nullptr},
          p.latent > place.column ? p.latent - place.column : 0};
}

// Accumulators 4 j .. 4 j + 3, times the share of each head. latent is a multiple of 16.
LC_DEVICE void store_fragment(const Result& result, uint32_t j, const float (&share)[2], const float* sums) {
  if (8 * j >= result.columns) return;
  LC_UNROLL
  for (uint32_t side = 0; side < 2; ++side) {
    const uint32_t both = ptx::pack_bf16x2(ptx::multiply_rn(sums[2 * side], share[side]),
                                           ptx::multiply_rn(sums[2 * side + 1], share[side]));
    if (result.to[side] != nullptr) ptx::store_global(reinterpret_cast<uint32_t*>(result.to[side] + 8 * j), both);
  }
}

}  // namespace longcat_ops::mla
