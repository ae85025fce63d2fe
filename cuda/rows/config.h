// How the kernels of rows are launched: pure functions of the shapes, for the launchers and for `explain`.
#pragma once

#include <cstdint>

namespace longcat_ops {

constexpr int kRowsThreads = 128;
constexpr int64_t kRowsChunk = 8;  // elements that a thread takes: of 16 bits in embed_rows, of the dtype in the others

// A thread takes a chunk of a row. A block takes kRowsThreads chunks of one row or, of narrow ones, several rows.
struct RowsConfig {
  int64_t blocks;  // 0 where there is nothing to write
  int64_t tile_rows, tile_chunks, column_tiles;
};

RowsConfig choose_rows_config(int64_t rows, int64_t width);

// rms_norm: a block for each row.
constexpr int kRmsNormSmemBytes = 32;  // the sums of eight warps

int choose_norm_threads(int64_t width);

}  // namespace longcat_ops
