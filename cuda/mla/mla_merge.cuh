// The end of mla_decode: merges the splits of the rows that several blocks attended to, in order. A row whose first
// block also did its last split is complete already.
//
// Floor: the partial sums, read once: 128 KB a split of 64 heads and 512 columns. A row has at most as many as its
// splits, and a block of the kernel ahead leaves at most one merged and the unmerged ones of one row.
#pragma once

#include "mla/decode_params.cuh"

namespace longcat_ops::mla {

// A block merges some columns of a row, kFragments fragments a thread.
template <uint32_t kHalf, uint32_t kFragments>
LC_KERNEL LC_LAUNCH_BOUNDS(kMergeThreads, 2) mla_merge_kernel(LC_GRID_CONSTANT MlaDecodeParams p) {
  constexpr uint32_t kParts = kHalf / 2 / kFragment / kFragments, kAhead = kFragments == 1 ? 8 : 2;
  const uint32_t row = ptx::block_index() / kParts, first = ptx::block_index() % kParts * kFragments;
  const uint32_t thread = ptx::thread_index();
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  const uint32_t splits = splits_of(p.deal, row / p.deal.head_tiles);
  if (splits < 2) return;
  const ptx::Vec16 merged = ptx::load_global(p.workspace.merged + row);
  uint32_t left = splits - merged.x;
  if (left == 0) return;
  const Place place = place_of(thread, kHalf);
  HeadState all[2];
  float sums[kFragments][kFragment];
  const auto load = [&](float* slot, HeadState(&states)[2], float (&to)[kFragments][kFragment]) {
    LC_UNROLL
    for (uint32_t side = 0; side < 2; ++side) states[side] = load_state<kHalf>(slot, place.low + 8 * side);
    LC_UNROLL
    for (uint32_t j = 0; j < kFragments; ++j) {
      const ptx::Float4 four = ptx::load_global(fragment_at(slot, thread, first + j));
      const float values[] = {four.x, four.y, four.z, four.w};
      LC_UNROLL
      for (uint32_t i = 0; i < kFragment; ++i) to[j][i] = values[i];
    }
  };
  load(slot_of<kHalf>(p, merged.y, 0), all, sums);
  for (uint32_t block = merged.y + merged.z; left > 0; block += merged.z) {
    const uint32_t raw = ptx::load_global(p.workspace.raw + block);
    for (uint32_t slot = 0; slot < raw; slot += kAhead) {
      HeadState states[kAhead][2];
      float parts[kAhead][kFragments][kFragment];
      LC_UNROLL
      for (uint32_t i = 0; i < kAhead; ++i)
        if (slot + i < raw) load(slot_of<kHalf>(p, block, 1 + slot + i), states[i], parts[i]);
      LC_UNROLL
      for (uint32_t i = 0; i < kAhead; ++i) {
        if (slot + i >= raw) break;
        const Factors factors[] = {merge_states(all[0], states[i][0]), merge_states(all[1], states[i][1])};
        LC_UNROLL
        for (uint32_t j = 0; j < kFragments; ++j) {
          LC_UNROLL
          for (uint32_t e = 0; e < kFragment; ++e) sums[j][e] = merge_sums(sums[j][e], parts[i][j][e], factors[e / 2]);
        }
      }
    }
    left -= raw;
  }
  const Result result = result_of(p, row, place);
  const float share[] = {ptx::divide_rn(1.0f, all[0].weight), ptx::divide_rn(1.0f, all[1].weight)};
  LC_UNROLL
  for (uint32_t j = 0; j < kFragments; ++j) store_fragment(result, first + j, share, sums[j]);
}

}  // namespace longcat_ops::mla
