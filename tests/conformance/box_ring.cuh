// A ring of TMA boxes: the access pattern with which the library's GEMMs read their weights.
#pragma once

#include "case.h"

namespace longcat_ops::conformance {

constexpr uint32_t kBoxBytes = 128, kBoxRows = 128, kRingBoxes = 8;
constexpr uint32_t kRingSmem = 1024 + kRingBoxes * kBoxBytes * kBoxRows;

// Block b loads the boxes b, b + grid, ... below `boxes` of a matrix that is `columns` boxes wide, up to kRingBoxes in
// flight, and sums their first words into sums [blocks].
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1)
    box_ring_kernel(LC_GRID_CONSTANT ptx::TensorMap map, uint32_t boxes, uint32_t columns, uint32_t* sums) {
  const uint32_t bar = ptx::dynamic_smem_base(), ring = bar + 1024;
  if (ptx::thread_index() != 0) return;
  for (uint32_t i = 0; i < kRingBoxes; ++i) ptx::mbarrier_init(bar + 8 * i, 1);
  ptx::fence_mbarrier_init();
  uint32_t issued = 0, done = 0, sum = 0;
  const auto take = [&] {
    const uint32_t slot = done % kRingBoxes;
    ptx::mbarrier_wait(bar + 8 * slot, done / kRingBoxes % 2);
    sum += ptx::load_shared<uint32_t>(ring + slot * kBoxBytes * kBoxRows);
    ++done;
  };
  for (uint32_t box = ptx::block_index(); box < boxes; box += ptx::grid_size(), ++issued) {
    if (issued >= kRingBoxes) take();
    const uint32_t slot = issued % kRingBoxes;
    ptx::mbarrier_arrive_expect_tx(bar + 8 * slot, kBoxBytes * kBoxRows);
    const int32_t at[] = {static_cast<int32_t>(box % columns * kBoxBytes),
                          static_cast<int32_t>(box / columns * kBoxRows)};
    ptx::tma_load(ring + slot * kBoxBytes * kBoxRows, &map, bar + 8 * slot, at);
  }
  while (done < issued) take();
  ptx::store_global(sums + ptx::block_index(), sum);
}

inline Tensor ring_tensor(uint32_t columns, uint32_t rows) {
  const uint64_t width = uint64_t{kBoxBytes} * columns;
  return {Element::kU8, {width, uint64_t{kBoxRows} * rows}, {width}, {kBoxBytes, kBoxRows}, ptx::Swizzle::k128B};
}

// 3 x 11 boxes for 2 blocks: the ring wraps around.
inline void box_ring(Machine& machine) {
  constexpr uint32_t kColumns = 3, kRows = 11, kBlocks = 2;
  const auto words = random_values<uint32_t>(kColumns * kRows * kBoxBytes * kBoxRows / 4, 3);
  std::vector<uint32_t> expected(kBlocks);
  for (uint32_t box = 0; box < kColumns * kRows; ++box)  // the first row of a box is not swizzled
    expected[box % kBlocks] += words[kBoxBytes / 4 * (box / kColumns * kBoxRows * kColumns + box % kColumns)];
  auto* sums = machine.output<uint32_t>(kBlocks);
  const ptx::TensorMap map = machine.tensor_map(machine.input(words), ring_tensor(kColumns, kRows));
  machine.launch(box_ring_kernel, {kBlocks, 32, kRingSmem}, map, kColumns * kRows, kColumns, sums);
  machine.expect(sums, expected);
}

inline void box_ring_cases(Cases& cases) {
  cases.add("box_ring/sums", "tma_load mbarrier_wait mbarrier_arrive_expect_tx", box_ring);
}

}  // namespace longcat_ops::conformance
