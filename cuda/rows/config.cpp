#include "rows/config.h"

#include <algorithm>

#include "common/norm_threads.h"
#include "common/numeric.h"

namespace longcat_ops {

// Small blocks: few rows spread over more SMs.
RowsConfig choose_rows_config(int64_t rows, int64_t width) {
  const int64_t chunks = ceil_div(width, kRowsChunk);
  if (rows == 0 || chunks == 0) return {};
  const int64_t tile_chunks = std::min<int64_t>(chunks, kRowsThreads), tile_rows = kRowsThreads / tile_chunks;
  const int64_t column_tiles = ceil_div(chunks, tile_chunks);
  return {ceil_div(rows, tile_rows) * column_tiles, tile_rows, tile_chunks, column_tiles};
}

int choose_norm_threads(int64_t width) {
  return static_cast<int>(device::norm_threads(static_cast<uint32_t>(ceil_div(width, kRowsChunk))));
}

}  // namespace longcat_ops
