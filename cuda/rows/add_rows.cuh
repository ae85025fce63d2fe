// add_rows: out = x + y in float32, rounded once.
//
// Floor per element: 4 bytes read and 2 written (f32: 8 and 4).
#pragma once

#include "device/norm_row.cuh"
#include "rows/row_chunks.cuh"

namespace longcat_ops::rows {

struct AddRowsParams {
  const void *x, *y;  // [T, H]
  void* out;          // [T, H]
  int64_t stride_x, stride_y, stride_out;
  RowTiles tiles;
};

template <class Format, bool kWide>
LC_KERNEL LC_LAUNCH_BOUNDS(kRowsThreads, 10) add_rows_kernel(LC_GRID_CONSTANT AddRowsParams p) {
  using Storage = typename Format::Storage;
  const ChunkPlace place = locate(p.tiles);
  if (!place.inside) return;
  const auto* x = static_cast<const Storage*>(p.x) + place.row * p.stride_x + place.column;
  const auto* y = static_cast<const Storage*>(p.y) + place.row * p.stride_y + place.column;
  auto* out = static_cast<Storage*>(p.out) + place.row * p.stride_out + place.column;

  ptx::grid_dependency_wait();
  const device::Chunk<Format> first = load_part<Format, kWide>(x, place.rest);
  const device::Chunk<Format> second = load_part<Format, kWide>(y, place.rest);
  ptx::grid_dependency_launch();
  store_part<Format, kWide>(out, device::add_chunks(first, second), place.rest);
}

}  // namespace longcat_ops::rows
