// per_block_quant_fp8: quantises every 128 x 128 block of a weight to e4m3 with one scale.
//
// Floor: 2 (16-bit w) or 4 (f32) bytes read, 1 written per element. A thread block holds one block of w in registers
// (8 chunks per thread), so w is read once.
#pragma once

#include "common/constants.h"
#include "device/fp8_scale.cuh"
#include "device/vector_io.cuh"
#include "device/warp_reduce.cuh"

namespace longcat_ops::quant {

struct PerBlockQuantFp8Params {
  const void* w;  // [rows, columns]
  uint8_t* q;     // [rows, columns]
  float* s;       // [ceil(rows / 128), ceil(columns / 128)], any strides
  int64_t rows, stride_w, stride_q, stride_s_row, stride_s_column;
  uint32_t chunks;         // of a row
  uint32_t column_blocks;  // ceil(columns / 128)
};

constexpr int kBlockQuantThreads = 256;
constexpr uint32_t kBlockQuantSmemBytes = device::kReduceScratchBytes;

template <class Format, bool kWide>
LC_KERNEL LC_LAUNCH_BOUNDS(kBlockQuantThreads, 2)
    per_block_quant_fp8_kernel(LC_GRID_CONSTANT PerBlockQuantFp8Params p) {
  using namespace device;
  constexpr uint32_t kBlock = kQuantBlock, kLanes = kBlock / kChunk;  // a half-warp per row of the block
  constexpr uint32_t kPassRows = kBlockQuantThreads / kLanes;         // rows that all half-warps take at once
  constexpr int kHeld = kBlock / kPassRows;
  const uint32_t row_block = ptx::block_index() / p.column_blocks;
  const uint32_t column_block = ptx::block_index() - row_block * p.column_blocks;
  const int64_t first_row = static_cast<int64_t>(row_block) * kBlock + ptx::thread_index() / kLanes;
  const uint32_t chunk = column_block * kLanes + ptx::thread_index() % kLanes;
  const auto* w = static_cast<const typename Format::Storage*>(p.w) + kChunk * static_cast<int64_t>(chunk);
  uint8_t* q = p.q + kChunk * static_cast<int64_t>(chunk);

  // Read the block.
  ptx::grid_dependency_wait();
  Chunk<Format> held[kHeld] = {};
  LC_UNROLL
  for (int i = 0; i < kHeld; ++i) {
    const int64_t row = first_row + i * kPassRows;
    if (chunk < p.chunks && row < p.rows) held[i] = load_chunk<Format, kWide>(w + row * p.stride_w);
  }
  ptx::grid_dependency_launch();

  // Find its largest magnitude.
  uint32_t amax = 0;
  float values[kChunk];
  LC_UNROLL
  for (int i = 0; i < kHeld; ++i) {
    unpack(held[i], values);
    amax = max_abs_bits(values, amax);
  }
  amax = reduce_block(amax, Max(), kBlockQuantThreads / 32, ptx::dynamic_smem_base());
  const Fp8Scale scale = make_fp8_scale(amax);

  // Store the scale and the codes.
  if (ptx::thread_index() == 0)
    ptx::store_global(p.s + row_block * p.stride_s_row + column_block * p.stride_s_column, scale.value);
  LC_UNROLL
  for (int i = 0; i < kHeld; ++i) {
    const int64_t row = first_row + i * kPassRows;
    if (chunk >= p.chunks || row >= p.rows) continue;
    unpack(held[i], values);
    store_codes<kWide>(q + row * p.stride_q, quantise_chunk(values, scale));
  }
}

}  // namespace longcat_ops::quant
