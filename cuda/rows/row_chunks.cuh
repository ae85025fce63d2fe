// The chunks of rows that a thread takes, and how it reads and writes them.
#pragma once

#include "common/numeric.h"
#include "device/vector_io.cuh"
#include "rows/config.h"

namespace longcat_ops::rows {

static_assert(kRowsChunk == device::kChunk);

struct RowTiles {
  int64_t rows, width;
  uint32_t tile_rows, tile_chunks, column_tiles;
};

inline RowTiles make_row_tiles(int64_t rows, int64_t width, const RowsConfig& config) {
  return {rows, width, static_cast<uint32_t>(config.tile_rows), static_cast<uint32_t>(config.tile_chunks),
          static_cast<uint32_t>(config.column_tiles)};
}

// Elements `column` .. `column + rest - 1` of a row, of which a thread takes the first chunk.
struct ChunkPlace {
  int64_t row, column, rest;
  bool inside;  // there is such a chunk
};

LC_DEVICE ChunkPlace locate(const RowTiles& tiles) {
  const uint32_t block = ptx::block_index(), thread = ptx::thread_index();
  const uint32_t row_tile = block / tiles.column_tiles, column_tile = block - row_tile * tiles.column_tiles;
  const uint32_t tile_row = thread / tiles.tile_chunks, tile_chunk = thread - tile_row * tiles.tile_chunks;
  const int64_t row = static_cast<int64_t>(row_tile) * tiles.tile_rows + tile_row;
  const int64_t column = kRowsChunk * (static_cast<int64_t>(column_tile) * tiles.tile_chunks + tile_chunk);
  return {row, column, tiles.width - column, tile_row < tiles.tile_rows && row < tiles.rows && column < tiles.width};
}

// kWide: every chunk is whole and aligned for one access. Otherwise elements move one by one, at most `rest` of them.
template <class Format, bool kWide>
LC_DEVICE device::Chunk<Format> load_part(const typename Format::Storage* from, int64_t rest) {
  if constexpr (kWide) return device::load_chunk<Format, true>(from);
  return device::load_elements<Format>(from, static_cast<uint32_t>(rest < kRowsChunk ? rest : kRowsChunk));
}

template <class Format, bool kWide>
LC_DEVICE void store_part(typename Format::Storage* to, const device::Chunk<Format>& chunk, int64_t rest) {
  if constexpr (kWide) return device::store_chunk<Format, true>(to, chunk);
  device::store_elements<Format>(to, chunk, static_cast<uint32_t>(rest < kRowsChunk ? rest : kRowsChunk));
}

}  // namespace longcat_ops::rows
