// pack_rows: the rows of a decode step, those of each sequence in order, packed to the front; -1 behind them.
//
// Floor per sequence of q tokens: 8 q + 8 bytes read, 16 q + 4 written. At 192 sequences of 2 tokens these are 12 KB:
// a launch is all that it costs.
//
// A block takes kPackThreads sequences. The rows before them, and all rows, are sums that every block computes for
// itself: 4 bytes a sequence, out of L2. So blocks wait for none, and one launch is enough.
#pragma once

#include "device/block_scan.cuh"
#include "step/config.h"

namespace longcat_ops::step {

struct PackRowsParams {
  const int64_t* tokens;                // [sequences, width]
  const int32_t *num_drafts, *lengths;  // [sequences]
  int64_t* ids;                         // [sequences * width], below 2^31
  int32_t *sequence, *position;         // the same
  int32_t* first_row;                   // [sequences]
  int32_t* num_rows;                    // [copies]
  int64_t stride_tokens, copies;
  uint32_t sequences, width;
};

constexpr int32_t kMostPosition = 0x7fffffff;
static_assert(device::kScanScratchBytes == kPackScanBytes);

// Rows of sequence b: none of an idle one.
LC_DEVICE uint32_t rows_of(const PackRowsParams& p, uint32_t b) {
  const int32_t drafts = ptx::load_global(p.num_drafts + b);
  if (drafts < 0) return 0;
  return static_cast<uint32_t>(drafts) < p.width ? static_cast<uint32_t>(drafts) + 1 : p.width;
}

LC_KERNEL LC_LAUNCH_BOUNDS(kPackThreads, 1) pack_rows_kernel(LC_GRID_CONSTANT PackRowsParams p) {
  constexpr uint32_t kWarps = kPackThreads / 32;
  const uint32_t scratch = ptx::dynamic_smem_base();
  const uint32_t begins = scratch + 3 * kPackScanBytes;  // [kPackThreads + 1]: first rows, and the last one's end
  const uint32_t thread = ptx::thread_index(), first = ptx::block_index() * kPackThreads, own = first + thread;

  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  uint32_t before = 0, total = 0;
  for (uint32_t b = thread; b < p.sequences; b += kPackThreads) {
    const uint32_t rows = rows_of(p, b);
    total += rows;
    if (b < first) before += rows;
  }
  const uint32_t count = own < p.sequences ? rows_of(p, own) : 0;
  before = device::scan_block(before, kWarps, scratch).total;
  total = device::scan_block(total, kWarps, scratch + kPackScanBytes).total;
  const device::Scan begin = device::scan_block(count, kWarps, scratch + 2 * kPackScanBytes);
  ptx::store_shared(begins + 4 * thread, before + begin.before);
  if (thread == 0) ptx::store_shared(begins + 4 * kPackThreads, before + begin.total);
  if (own < p.sequences)
    ptx::store_global(p.first_row + own, count > 0 ? static_cast<int32_t>(before + begin.before) : -1);
  ptx::sync_threads();

  // Neighbouring threads take neighbouring tokens.
  const uint32_t rest = p.sequences - first, slots = (rest < kPackThreads ? rest : kPackThreads) * p.width;
  for (uint32_t slot = thread; slot < slots; slot += kPackThreads) {
    const uint32_t at = slot / p.width, j = slot % p.width, b = first + at;
    const uint32_t row = ptx::load_shared<uint32_t>(begins + 4 * at) + j;
    if (row >= ptx::load_shared<uint32_t>(begins + 4 * at + 4)) continue;
    const int64_t position = int64_t{ptx::load_global(p.lengths + b)} + j;
    ptx::store_global(p.ids + row, ptx::load_global(p.tokens + b * p.stride_tokens + j));
    ptx::store_global(p.sequence + row, static_cast<int32_t>(b));
    ptx::store_global(p.position + row, position < kMostPosition ? static_cast<int32_t>(position) : kMostPosition);
  }

  // All threads of the grid share the padding.
  const uint32_t threads = ptx::grid_size() * kPackThreads;
  for (uint32_t row = total + own; row < p.sequences * p.width; row += threads) {
    ptx::store_global(p.ids + row, int64_t{-1});
    ptx::store_global(p.sequence + row, -1);
    ptx::store_global(p.position + row, -1);
  }
  for (int64_t i = own; i < p.copies; i += threads) ptx::store_global(p.num_rows + i, static_cast<int32_t>(total));
}

}  // namespace longcat_ops::step
