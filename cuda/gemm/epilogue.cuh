// Stores sums to global memory: exactly the tile's tokens and the weight's rows. Each consumer warpgroup has 64 rows,
// so 128 bytes of bf16 per token. They leave through shared memory, one bulk copy each, while the next tile begins.
#pragma once

#include "device/fp8_scale.cuh"
#include "gemm/scheduler.cuh"

namespace longcat_ops::moe_gemm {

struct OutputTile {
  uint32_t group, row, tokens;  // of the tile
  uint32_t column, columns;     // the warpgroup's: first column of the output, and how many there are
  uint32_t warpgroup;
  bool refused = false;  // without scales, which carry it otherwise
};

// What a refused tile stores.
template <uint32_t kCount>
LC_DEVICE void refuse(float (&sum)[kCount]) {
  LC_UNROLL
  for (uint32_t i = 0; i < kCount; ++i) sum[i] = device::bits_float(device::kNanBits);
}

// Barrier of a warpgroup. NOTE: with an id in a register the compiler would count all 16 barriers as used.
LC_DEVICE void sync_warpgroup(uint32_t warpgroup) {
  if (warpgroup == 0) {
    ptx::named_barrier_sync(kStoreBarrier, 128);
  } else {
    ptx::named_barrier_sync(kStoreBarrier + 1, 128);
  }
}

// A thread's sum[i] is weight row 16 (warp % 4) + lane / 4 + 8 (i / 2 % 2), token 8 (i / 4) + 2 (lane % 4) + i % 2.
// Stores kGroups groups of 8 tokens from sum[4 * kFirst] on: the tile's tokens from first_token on.
template <uint32_t kFirst, uint32_t kGroups, uint32_t kCount>
LC_DEVICE void store_bulk(const MoeGemmParams& p, uint32_t buffer, const OutputTile& tile, uint32_t first_token,
                          const float (&sum)[kCount]) {
  const uint32_t lane = ptx::lane_index(), thread = ptx::thread_index() % 128;
  ptx::bulk_wait_read<0>();  // this thread's copy has read the buffer; then the barrier, for all copies
  sync_warpgroup(tile.warpgroup);
  // A transposed 8x8 matrix holds a token's 8 rows in 16 bytes; lanes 0 .. 7 and 8 .. 15 address a warp's two.
  const uint32_t to = buffer + lane % 8 * kStorePitch + thread / 32 * 32 + lane / 8 % 2 * 16;
  LC_UNROLL
  for (uint32_t c = 0; c < kGroups; ++c) {
    const float* v = sum + 4 * (kFirst + c);
    ptx::store_matrix<2, true>(to + c * 8 * kStorePitch, {ptx::pack_bf16x2(v[0], v[1]), ptx::pack_bf16x2(v[2], v[3])});
  }
  ptx::fence_proxy_async_shared();
  sync_warpgroup(tile.warpgroup);
  if (thread < 8 * kGroups && first_token + thread < tile.tokens) {
    auto* out = reinterpret_cast<uint16_t*>(p.output.data) + tile.group * p.output.group_stride +
                (tile.row + first_token + thread) * p.output.row_stride + tile.column;
    ptx::bulk_store(out, buffer + thread * kStorePitch, 2 * tile.columns);
  }
  ptx::bulk_commit();
}

// Any dtype and alignment, element by element.
template <uint32_t kCount>
LC_DEVICE void store_elements(const MoeGemmParams& p, const OutputTile& tile, uint32_t first_token,
                              const float (&sum)[kCount]) {
  const uint32_t lane = ptx::lane_index(), column = ptx::thread_index() % 128 / 32 * 16 + lane / 4;
  LC_UNROLL
  for (uint32_t i = 0; i < kCount; ++i) {
    const uint32_t token = first_token + 8 * (i / 4) + 2 * (lane % 4) + i % 2, c = column + 8 * (i / 2 % 2);
    if (token >= tile.tokens || c >= tile.columns) continue;
    const int64_t at = tile.group * p.output.group_stride + (tile.row + token) * p.output.row_stride + tile.column + c;
    if (p.output_type == OutputType::kFloat32) {
      ptx::store_global(static_cast<float*>(p.output.data) + at, sum[i]);
    } else {
      const bool bf16 = p.output_type == OutputType::kBFloat16;
      const uint32_t bits = bf16 ? ptx::pack_bf16x2(sum[i], 0.0f) : ptx::pack_f16x2(sum[i], 0.0f);
      ptx::store_global(static_cast<uint16_t*>(p.output.data) + at, static_cast<uint16_t>(bits));
    }
  }
}

template <uint32_t kFirst, uint32_t kCount>
LC_DEVICE void store_steps(const MoeGemmParams& p, uint32_t buffer, const OutputTile& tile, uint32_t first_token,
                           const float (&sum)[kCount]) {
  constexpr uint32_t kStep = kStoreTokens / 8, kAll = kCount / 4,
                     kGroups = kAll - kFirst < kStep ? kAll - kFirst : kStep;
  if (first_token + 8 * kFirst >= tile.tokens) return;
  store_bulk<kFirst, kGroups>(p, buffer, tile, first_token + 8 * kFirst, sum);
  if constexpr (kFirst + kGroups < kAll) store_steps<kFirst + kGroups>(p, buffer, tile, first_token, sum);
}

template <uint32_t kCount>
LC_DEVICE void store_tile(const MoeGemmParams& p, uint32_t base, const OutputTile& tile, uint32_t first_token,
                          const float (&sum)[kCount]) {
  if (tile.columns == 0) return;
  if (p.bulk_output) {
    store_steps<0>(p, base + p.smem.output + tile.warpgroup * p.smem.store_bytes, tile, first_token, sum);
  } else {
    store_elements(p, tile, first_token, sum);
  }
}

}  // namespace longcat_ops::moe_gemm
