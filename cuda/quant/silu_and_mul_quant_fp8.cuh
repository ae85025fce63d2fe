// silu_and_mul_quant_fp8: h = silu(gate) * up in float32, quantised 1x128 without a rounding in between.
//
// Floor: 4 (16-bit) or 8 (f32) bytes read, 1 + 4 / 128 written per element of h: 5.03 bytes for bf16. A half-warp
// holds gate, up and then h of a group in registers, so gate_up is read once.
#pragma once

#include "device/fp8_scale.cuh"
#include "device/math.cuh"
#include "device/vector_io.cuh"
#include "device/warp_reduce.cuh"
#include "quant/row_tiles.cuh"

namespace longcat_ops::quant {

struct SiluAndMulQuantFp8Params {
  const void* gate_up;  // [rows, 2 * columns], gate first
  uint8_t* q;           // [rows, columns]
  float* s;             // [rows, cells], any strides
  int64_t columns, stride_gate_up, stride_q, stride_s_row, stride_s_column;
  RowTiles tiles;   // a cell is a group of 128
  uint32_t chunks;  // of a row of q
};

// A team of 16 lanes takes a group of 16 chunks of kRows rows.
template <class Format, int kRows, bool kWide>
LC_KERNEL LC_LAUNCH_BOUNDS(kTileThreads, 4) silu_and_mul_quant_fp8_kernel(LC_GRID_CONSTANT SiluAndMulQuantFp8Params p) {
  using namespace device;
  constexpr int kLanes = 16;
  const TilePlace place = locate<kLanes, kRows>(p.tiles);
  const uint32_t lane = ptx::thread_index() % kLanes;
  const uint32_t chunk = kLanes * place.cell + lane;
  const bool inside = place.inside && chunk < p.chunks;
  const auto* gate_up = static_cast<const typename Format::Storage*>(p.gate_up);

  // Read everything before any of it is used. Zeros give h = 0, which does not change a maximum.
  ptx::grid_dependency_wait();
  Chunk<Format> gate[kRows] = {}, up[kRows] = {};
  LC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = place.first_row + i * p.tiles.tile_rows;
    const auto* from = gate_up + row * p.stride_gate_up + kChunk * chunk;
    if (inside && row < p.tiles.rows) {
      gate[i] = load_chunk<Format, kWide>(from);
      up[i] = load_chunk<Format, kWide>(from + p.columns);
    }
  }
  ptx::grid_dependency_launch();

  LC_UNROLL
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = place.first_row + i * p.tiles.tile_rows;

    // h = gate / (1 + exp(-gate)) * up
    float h[kChunk], up_values[kChunk];
    unpack(gate[i], h);
    unpack(up[i], up_values);
    LC_UNROLL
    for (uint32_t j = 0; j < kChunk; ++j) h[j] = ptx::multiply_rn(ptx::silu(h[j]), up_values[j]);

    // Quantise the group; lane 0 of every team inside the matrix holds a chunk of it.
    const Fp8Scale scale = make_fp8_scale(reduce_lanes<kLanes>(max_abs_bits(h), Max()));
    if (!inside || row >= p.tiles.rows) continue;
    if (lane == 0) ptx::store_global(p.s + row * p.stride_s_row + place.cell * p.stride_s_column, scale.value);
    store_codes<kWide>(p.q + row * p.stride_q + kChunk * chunk, quantise_chunk(h, scale));
  }
}

}  // namespace longcat_ops::quant
