// dequant_fp8: out = q * s in float32, rounded once; one scale per row and group, or per 128 x 128 block.
//
// Floor: 1 byte read and 2 (16-bit out) or 4 (f32) written per element, plus the scales: 3.03 bytes for bf16 by groups
// of 128. Widths need not be multiples of 8 here: the last chunk of a row may be partial.
#pragma once

#include "device/vector_io.cuh"
#include "quant/row_tiles.cuh"

namespace longcat_ops::quant {

struct DequantFp8Params {
  const uint8_t* q;  // [rows, columns]
  const float* s;    // [ceil(rows / (1 << row_shift)), ceil(columns / group)], any strides
  void* out;         // [rows, columns]
  int64_t columns, stride_q, stride_s_row, stride_s_column, stride_out;
  RowTiles tiles;         // a cell is a chunk
  uint32_t group_chunks;  // chunks per scale
  int32_t row_shift;      // 0: one row per scale, 7: 128
};

template <class Format, int kRows, bool kWide>
LC_KERNEL LC_LAUNCH_BOUNDS(kTileThreads, 4) dequant_fp8_kernel(LC_GRID_CONSTANT DequantFp8Params p) {
  using namespace device;
  const TilePlace place = locate<1, kRows>(p.tiles);
  const int64_t column = static_cast<int64_t>(kChunk) * place.cell;
  const int64_t rest = p.columns - column;
  const uint32_t count = rest < kChunk ? static_cast<uint32_t>(rest) : kChunk;
  const float* s = p.s + place.cell / p.group_chunks * p.stride_s_column;
  auto* out = static_cast<typename Format::Storage*>(p.out);

  // Read the codes and scales of all rows before any is used.
  ptx::grid_dependency_wait();
  ptx::Vec8 codes[kRows] = {};
  float scale[kRows] = {};
  LC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = place.first_row + i * p.tiles.tile_rows;
    if (place.inside && row < p.tiles.rows) {
      codes[i] = load_codes<kWide>(p.q + row * p.stride_q + column, count);
      scale[i] = ptx::load_global(s + (row >> p.row_shift) * p.stride_s_row);
    }
  }
  ptx::grid_dependency_launch();

  // Multiply, round once, store.
  LC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = place.first_row + i * p.tiles.tile_rows;
    if (!place.inside || row >= p.tiles.rows) continue;
    float low[4], high[4], values[kChunk];
    ptx::unpack_e4m3x4(codes[i].x, low);
    ptx::unpack_e4m3x4(codes[i].y, high);
    LC_UNROLL
    for (uint32_t j = 0; j < kChunk; ++j) values[j] = ptx::multiply_rn(j < 4 ? low[j % 4] : high[j % 4], scale[i]);
    const Chunk<Format> chunk = pack<Format>(values);
    if constexpr (kWide) {
      store_chunk<Format, true>(out + row * p.stride_out + column, chunk);
    } else {
      store_elements<Format>(out + row * p.stride_out + column, chunk, count);
    }
  }
}

}  // namespace longcat_ops::quant
