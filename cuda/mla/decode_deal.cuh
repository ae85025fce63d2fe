// How mla_decode is dealt out to its blocks. A row is 64 heads of a token, and has a unit for each split of its past.
// The units of all rows, in order, are cut into runs of equal length, one for each block. Where a run begins inside a
// row, the splits before it are another block's, so the block keeps its own unmerged until that row ends: they are
// merged later, in order (mla_merge.cuh). Elsewhere it merges a row's splits as it goes. So neither the number of
// blocks nor the company changes a bit.
//
// Where the rows come in pairs of one sequence, as when a draft is verified, even blocks take the first of each and odd
// blocks the second: both walk the same pages at the same time, and one of them finds them in L2.
#pragma once

#include "device/block_scan.cuh"
#include "mla/config.h"
#include "mla/pages.cuh"

namespace longcat_ops::mla {

struct Deal {
  PageView pages;
  const int32_t *sequence, *position;  // [tokens]
  uint32_t rows, head_tiles;           // of all tokens; of a token
  uint32_t split_rows, raw_splits;     // rows of a split; splits that a block can keep unmerged
};

// Units [first, first + units) of every stride-th row, beginning with split `split` of `row`.
struct Run {
  uint32_t row, split, units, stride;
};

// Splits [begin, end) of a row's `splits`.
struct Segment {
  uint32_t row, splits, begin, end;
  int32_t sequence;
  uint32_t position;
};

// 0: padding, or a place that the table does not have.
LC_DEVICE uint32_t splits_of(const Deal& d, uint32_t token) {
  const int32_t position = ptx::load_global(d.position + token);
  if (!has_entry(d.pages, ptx::load_global(d.sequence + token), position)) return 0;
  return static_cast<uint32_t>(position) / d.split_rows + 1;
}

// Called by all threads of the block; scratch: kScanParts * 128 + 32 bytes of shared memory.
LC_DEVICE Run deal_run(const Deal& d, uint32_t scratch) {
  constexpr uint32_t kWarps = kDecodeThreads / 32;
  const uint32_t thread = ptx::thread_index(), block = ptx::block_index(), grid = ptx::grid_size();
  uint32_t strangers = (d.rows | grid) % 2, own_even = 0, own_odd = 0;
  for (uint32_t row = thread; row < d.rows; row += kDecodeThreads) {
    const uint32_t token = row / d.head_tiles, other = (row ^ 1) / d.head_tiles;
    (row % 2 == 0 ? own_even : own_odd) += splits_of(d, token);
    if (strangers == 0) strangers = ptx::load_global(d.sequence + token) != ptx::load_global(d.sequence + other);
  }
  const bool paired = device::scan_block(strangers, kWarps, scratch).total == 0;
  const uint32_t even = device::scan_block(own_even, kWarps, scratch + device::kScanScratchBytes).total;
  const uint32_t odd = device::scan_block(own_odd, kWarps, scratch + 2 * device::kScanScratchBytes).total;
  const uint32_t stride = paired ? 2 : 1, lane = block % stride, runs = grid / stride;
  const uint32_t total = paired ? (lane == 0 ? even : odd) : even + odd;
  const uint32_t each = total / runs, rest = total % runs, longest = each + (rest > 0 ? 1 : 0);
  const auto cut = [&](uint32_t run) { return each * run + rest * run / runs; };  // total * run / runs

  // The first unit, row and split of this run and of the next.
  const uint32_t ends = scratch + kScanParts * device::kScanScratchBytes;
  if (thread < 2) ptx::store_shared(ends + 16 * thread, ptx::Vec16{total, d.rows, 0, 0});
  ptx::sync_threads();
  for (uint32_t first = 0, before = 0; first < d.rows / stride; first += kDecodeThreads) {
    const uint32_t i = first + thread;
    const uint32_t splits = i < d.rows / stride ? splits_of(d, (i * stride + lane) / d.head_tiles) : 0;
    const device::Scan scan = device::scan_block(splits, kWarps, scratch);
    const uint32_t begin = before + scan.before, end = begin + splits;
    LC_UNROLL
    for (uint32_t side = 0; side < 2; ++side) {
      uint32_t run = block / stride + side, unit = cut(run);
      if (unit < begin || unit >= end) continue;
      // A cut that leaves a block more splits than it can keep moves on, to the next one or to the end of the row.
      while (unit > begin && unit < end && longest > d.raw_splits && end - unit > d.raw_splits) unit = cut(++run);
      const ptx::Vec16 place = unit < end ? ptx::Vec16{unit, i, unit - begin, 0} : ptx::Vec16{end, i + 1, 0, 0};
      ptx::store_shared(ends + 16 * side, place);
    }
    before += scan.total;
    ptx::sync_threads();
  }
  const auto from = ptx::load_shared<ptx::Vec16>(ends), to = ptx::load_shared<ptx::Vec16>(ends + 16);
  return {from.y * stride + lane, from.z, to.x - from.x, stride};
}

// Splits of the run's first row that other blocks' splits precede.
LC_DEVICE uint32_t raw_splits_of(const Deal& d, const Run& run) {
  if (run.split == 0 || run.units == 0) return 0;
  const uint32_t rest = splits_of(d, run.row / d.head_tiles) - run.split;
  return rest < run.units ? rest : run.units;
}

// The next segment of the run, which it shortens; units must be left.
LC_DEVICE Segment take_segment(const Deal& d, Run& run) {
  uint32_t splits = splits_of(d, run.row / d.head_tiles);
  while (splits <= run.split) {
    run.row += run.stride;
    run.split = 0;
    splits = splits_of(d, run.row / d.head_tiles);
  }
  const uint32_t rest = splits - run.split, taken = rest < run.units ? rest : run.units, token = run.row / d.head_tiles;
  const Segment segment{run.row,
                        splits,
                        run.split,
                        run.split + taken,
                        ptx::load_global(d.sequence + token),
                        static_cast<uint32_t>(ptx::load_global(d.position + token))};
  run.units -= taken;
  run.split += taken;
  return segment;
}

}  // namespace longcat_ops::mla
