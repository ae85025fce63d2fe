// embed_rows: row ids[t] of the table, unchanged; zeros where the table has no such row.
//
// Floor per token of LongCat-Flash in bf16: 8 bytes of its id and 12288 of its row read, 12288 written. The format does
// not matter: a chunk is 8 halves, and a row of f32 counts as one of twice the width.
#pragma once

#include "rows/row_chunks.cuh"

namespace longcat_ops::rows {

struct EmbedRowsParams {
  const uint16_t* table;  // [vocabulary, H], or [vocabulary, 2H] for f32; strides likewise
  const int64_t* ids;     // [T]
  uint16_t* out;          // [T, H]
  int64_t stride_table, stride_out, vocabulary;
  RowTiles tiles;  // of out
};

template <bool kWide>
LC_KERNEL LC_LAUNCH_BOUNDS(kRowsThreads, 16) embed_rows_kernel(LC_GRID_CONSTANT EmbedRowsParams p) {
  using Halves = device::BFloat16;
  const ChunkPlace place = locate(p.tiles);
  if (!place.inside) return;

  ptx::grid_dependency_wait();
  const int64_t id = ptx::load_global(p.ids + place.row);
  device::Chunk<Halves> chunk = {};
  if (id >= 0 && id < p.vocabulary)
    chunk = load_part<Halves, kWide>(p.table + id * p.stride_table + place.column, place.rest);
  ptx::grid_dependency_launch();
  store_part<Halves, kWide>(p.out + place.row * p.stride_out + place.column, chunk, place.rest);
}

}  // namespace longcat_ops::rows
