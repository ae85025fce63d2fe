// per_token_group_quant_fp8: quantises every run of group_size elements of a row to e4m3 with its own scale.
//
// Floor: 2 (16-bit x) or 4 (f32) bytes read, 1 + 4 / group_size written per element: 3.03 bytes for bf16 in groups of
// 128. A team of lanes holds its group in registers, so x is read once (beyond 1024 per group again, from L2).
#pragma once

#include "device/fp8_scale.cuh"
#include "device/vector_io.cuh"
#include "device/warp_reduce.cuh"
#include "quant/row_tiles.cuh"

namespace longcat_ops::quant {

struct PerTokenGroupQuantFp8Params {
  const void* x;  // [rows, columns]
  uint8_t* q;     // [rows, columns]
  float* s;       // [rows, cells], any strides
  int64_t stride_x, stride_q, stride_s_row, stride_s_column;
  RowTiles tiles;         // a cell is a group
  uint32_t chunks;        // of a row
  uint32_t group_chunks;  // of a group; the last group of a row may have fewer
};

// kLanes lanes hold kHeld chunks each of kRows groups.
template <class Format, int kLanes, int kRows, int kHeld, bool kWide>
LC_KERNEL LC_LAUNCH_BOUNDS(kTileThreads, 4)
    per_token_group_quant_fp8_kernel(LC_GRID_CONSTANT PerTokenGroupQuantFp8Params p) {
  using namespace device;
  static_assert(kTileThreads % kLanes == 0 && kRows >= 1 && kHeld >= 1);
  const TilePlace place = locate<kLanes, kRows>(p.tiles);
  const int64_t last_row = p.tiles.rows - 1;
  const uint32_t lane = ptx::thread_index() % kLanes;

  // Cut the group at the end of the row.
  const uint32_t group_begin = place.cell * p.group_chunks;
  const uint32_t group_limit = group_begin + p.group_chunks;
  const uint32_t group_end = place.inside ? (group_limit < p.chunks ? group_limit : p.chunks) : 0;
  const uint32_t held_end = group_begin + kLanes * kHeld;
  const auto* x = static_cast<const typename Format::Storage*>(p.x);

  // Read everything this thread holds before any of it is used. Zeros do not change a maximum.
  ptx::grid_dependency_wait();
  Chunk<Format> held[kRows][kHeld] = {};
  LC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = place.first_row + i * p.tiles.tile_rows;
    LC_UNROLL
    for (int j = 0; j < kHeld; ++j) {
      const uint32_t chunk = group_begin + lane + kLanes * j;
      if (row <= last_row && chunk < group_end)
        held[i][j] = load_chunk<Format, kWide>(x + row * p.stride_x + kChunk * chunk);
    }
  }
  // NOTE: if groups fit in registers, all reads are done here and the next kernel may start.
  if constexpr (kLanes < 32) ptx::grid_dependency_launch();

  LC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = place.first_row + i * p.tiles.tile_rows;
    const uint32_t end = row <= last_row ? group_end : 0;
    const auto* x_row = x + row * p.stride_x;
    uint8_t* q_row = p.q + row * p.stride_q;
    float values[kChunk];

    // Find the group's largest magnitude.
    uint32_t amax = 0;
    LC_UNROLL
    for (int j = 0; j < kHeld; ++j) {
      unpack(held[i][j], values);
      amax = max_abs_bits(values, amax);
    }
    if constexpr (kLanes == 32) {
      for (uint32_t chunk = held_end + lane; chunk < end; chunk += kLanes) {
        unpack(load_chunk<Format, kWide>(x_row + kChunk * chunk), values);
        amax = max_abs_bits(values, amax);
      }
    }
    const Fp8Scale scale = make_fp8_scale(reduce_lanes<kLanes>(amax, Max()));

    // Store the scale and the codes.
    if (end != 0 && lane == 0)
      ptx::store_global(p.s + row * p.stride_s_row + place.cell * p.stride_s_column, scale.value);
    LC_UNROLL
    for (int j = 0; j < kHeld; ++j) {
      const uint32_t chunk = group_begin + lane + kLanes * j;
      if (chunk >= end) continue;
      unpack(held[i][j], values);
      store_codes<kWide>(q_row + kChunk * chunk, quantise_chunk(values, scale));
    }
    if constexpr (kLanes == 32) {
      for (uint32_t chunk = held_end + lane; chunk < end; chunk += kLanes) {
        unpack(load_chunk<Format, kWide>(x_row + kChunk * chunk), values);
        store_codes<kWide>(q_row + kChunk * chunk, quantise_chunk(values, scale));
      }
    }
  }
  if constexpr (kLanes == 32) ptx::grid_dependency_launch();
}

}  // namespace longcat_ops::quant
