// ep_combine: sends the row of every received row back to its source, to where the source's plan has it. The source's
// moe_combine weighs and sums the rows in the order of its choices, so that weights never travel, and the sum has the
// bits of one rank alone.
//
// Floor per received row, H columns: 2 H bytes read and 2 H written, over NVLink unless the source is this rank: 12 288
// for H = 6144.
//
// Received rows are sorted by expert, then source, so a run of rows has one source: a table says where each run begins.
// A warp takes parts of rows in turn with all others; rows have equal parts, however uneven the runs are.
#pragma once

#include "comm/ep_view.cuh"

namespace longcat_ops::comm {

struct EpCombineParams {
  ExpertView view;
  const uint8_t* y;  // bf16 [received, hidden]
  int64_t stride_y;  // bytes
  uint32_t packs;    // of 16 bytes, of a row
  uint32_t parts;    // of a row
};

constexpr uint32_t kCombineWarps = kCombineThreads / kWarpLanes;
static_assert(kMaxExperts <= kWarpLanes * kWarpLanes);  // a run is found in two steps

// Shared memory: where runs begin, then what leads from a row here to the row of its source's plan.
constexpr uint32_t combine_smem(uint32_t experts) { return 2 * 4 * experts; }

LC_KERNEL LC_LAUNCH_BOUNDS(kCombineThreads, 8) ep_combine_kernel(LC_GRID_CONSTANT EpCombineParams p) {
  const ExpertView& e = p.view;
  const uint32_t firsts = ptx::dynamic_smem_base(), shifts = firsts + 4 * e.experts, lane = ptx::lane_index();
  const ExpertTable table(e);
  for (uint32_t i = ptx::thread_index(); i < e.experts; i += kCombineThreads) {
    ptx::store_shared(firsts + 4 * i, ptx::load_global(table.first + i));
    ptx::store_shared(shifts + 4 * i, ptx::load_global(table.return_shift + i));
  }
  const uint32_t rows = ptx::load_global(table.first + e.experts);
  ptx::sync_threads();

  // The run of a row is the last that begins at or before it. Lane l first looks at run 32 l, then at the l-th behind.
  constexpr uint32_t kNever = 0xffffffffu;
  const auto first = [&](uint32_t run) {
    return run < e.experts ? ptx::load_shared<uint32_t>(firsts + 4 * run) : kNever;
  };
  const auto last_begun = [](uint32_t begin, uint32_t row) { return ptx::popcount(ptx::ballot(begin <= row)) - 1; };
  const uint32_t coarse = first(kWarpLanes * lane);
  // The table of a call that was given up is that of an earlier one.
  const uint32_t units = ptx::any(is_aborted(e.ranks)) ? 0 : rows * p.parts;
  for (uint32_t unit = ptx::block_index() * kCombineWarps + ptx::warp_index(); unit < units;
       unit += ptx::grid_size() * kCombineWarps) {
    const uint32_t row = unit / p.parts, part = unit - row * p.parts;
    const uint32_t near = kWarpLanes * last_begun(coarse, row), run = near + last_begun(first(near + lane), row);
    const uint32_t back = row + ptx::load_shared<uint32_t>(shifts + 4 * run);
    if (back >= e.back) continue;  // never, unless the table is not of this call
    const uint64_t row_bytes = kPackBytes * p.packs;
    const auto* from = reinterpret_cast<const ptx::Vec16*>(p.y + row * p.stride_y);
    auto* to = reinterpret_cast<ptx::Vec16*>(e.ranks.memory[run % e.ranks.ranks] + e.returned + back * row_bytes);
    const uint32_t pack = kWarpLanes * kCombinePacks * part + lane;
    ptx::Vec16 held[kCombinePacks];
    LC_UNROLL
    for (uint32_t j = 0; j < kCombinePacks; ++j)
      if (pack + kWarpLanes * j < p.packs) held[j] = ptx::load_global(from + pack + kWarpLanes * j);
    LC_UNROLL
    for (uint32_t j = 0; j < kCombinePacks; ++j)
      if (pack + kWarpLanes * j < p.packs) ptx::store_global(to + pack + kWarpLanes * j, held[j]);
  }
  if (flag_rows(e, Traffic::kCombine))
    count(e, kBytesToOthers, ptx::load_global(e.call + kCallRemote) * (uint64_t{kPackBytes} * p.packs));
}

}  // namespace longcat_ops::comm
