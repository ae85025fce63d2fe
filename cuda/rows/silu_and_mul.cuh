// silu_and_mul: out = silu(gate) * up in float32, rounded once.
//
// Floor per element of out: 4 bytes read and 2 written (f32: 8 and 4).
#pragma once

#include "device/math.cuh"
#include "rows/row_chunks.cuh"

namespace longcat_ops::rows {

struct SiluAndMulParams {
  const void* gate_up;  // [T, 2I], gate first
  void* out;            // [T, I]
  int64_t stride_gate_up, stride_out;
  RowTiles tiles;  // of out
};

template <class Format, bool kWide>
LC_KERNEL LC_LAUNCH_BOUNDS(kRowsThreads, 10) silu_and_mul_kernel(LC_GRID_CONSTANT SiluAndMulParams p) {
  using namespace device;
  using Storage = typename Format::Storage;
  const ChunkPlace place = locate(p.tiles);
  if (!place.inside) return;
  const auto* gate = static_cast<const Storage*>(p.gate_up) + place.row * p.stride_gate_up + place.column;
  auto* out = static_cast<Storage*>(p.out) + place.row * p.stride_out + place.column;

  ptx::grid_dependency_wait();
  const Chunk<Format> gates = load_part<Format, kWide>(gate, place.rest);
  const Chunk<Format> ups = load_part<Format, kWide>(gate + p.tiles.width, place.rest);
  ptx::grid_dependency_launch();

  float h[kChunk], up[kChunk];
  unpack(gates, h);
  unpack(ups, up);
  LC_UNROLL
  for (uint32_t i = 0; i < kChunk; ++i) h[i] = ptx::multiply_rn(ptx::silu(h[i]), up[i]);
  store_part<Format, kWide>(out, pack<Format>(h), place.rest);
}

}  // namespace longcat_ops::rows
