// Work distribution of the kernels that go over rows. A row is split into cells (a quantisation group, or a chunk of
// 8). A team of kLanes lanes takes one cell of kRows rows; a block takes a tile of tile_rows * kRows rows and
// tile_cells cells.
#pragma once

#include <cstdint>

#include "ptx/ptx.cuh"

namespace longcat_ops::quant {

constexpr int kTileThreads = 256;

struct RowTiles {
  int64_t rows;
  uint32_t cells;  // in a row
  uint32_t tile_cells, tile_rows;
  uint32_t column_tiles;
};

// A team's first row, its cell, and whether there is such a cell; row i of a team is first_row + i * tile_rows.
struct TilePlace {
  int64_t first_row;
  uint32_t cell;
  bool inside;
};

// If rows are narrow, a tile holds several; at most tile_cells - 1 teams stay idle.
inline RowTiles make_row_tiles(int64_t rows, int64_t cells, int lanes) {
  const int64_t teams = kTileThreads / lanes, tile_cells = cells < teams ? cells : teams;
  return {rows, static_cast<uint32_t>(cells), static_cast<uint32_t>(tile_cells),
          static_cast<uint32_t>(teams / tile_cells), static_cast<uint32_t>((cells + tile_cells - 1) / tile_cells)};
}

inline int64_t count_blocks(const RowTiles& tiles, int rows_per_team) {
  const int64_t block_rows = static_cast<int64_t>(tiles.tile_rows) * rows_per_team;
  return (tiles.rows + block_rows - 1) / block_rows * tiles.column_tiles;
}

template <int kLanes, int kRows>
LC_DEVICE TilePlace locate(const RowTiles& tiles) {
  const uint32_t team = ptx::thread_index() / kLanes;
  const uint32_t row_tile = ptx::block_index() / tiles.column_tiles;
  const uint32_t column_tile = ptx::block_index() - row_tile * tiles.column_tiles;
  const uint32_t team_row = team / tiles.tile_cells;
  const uint32_t cell = column_tile * tiles.tile_cells + (team - team_row * tiles.tile_cells);
  return {static_cast<int64_t>(row_tile) * (tiles.tile_rows * kRows) + team_row, cell,
          team_row < tiles.tile_rows && cell < tiles.cells};
}

}  // namespace longcat_ops::quant
