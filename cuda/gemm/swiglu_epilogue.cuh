// Turns a tile's sums of gate and up into h = silu(gate) * up, in float32, then quantises it 1x128 with the functions
// of the quantisers, since the tile's 128 channels of a token share a scale; or rounds it to bf16.
#pragma once

#include "device/fp8_scale.cuh"
#include "device/math.cuh"
#include "device/warp_reduce.cuh"
#include "gemm/scheduler.cuh"

namespace longcat_ops::moe_gemm {

struct MoeSwigluGemmParams {
  MoeGemmParams gemm;  // without its output
  Stack<uint8_t> h;    // e4m3 or bf16 [1, rows, n / 2]; strides in bytes
  Stack<float> sh;     // e4m3: [1, rows, ceil(n / 256)]
  bool quantised;      // h is e4m3
  bool bulk_h;         // rows of h on 16-byte boundaries
};

constexpr uint32_t kSlabs = 2;  // per consumer warpgroup, of 64 weight rows each, so 32 channels
constexpr uint32_t kSlabChannels = kWarpgroupRows / 2;
constexpr uint32_t kChannels = kSlabs * kSlabChannels * 2;  // per tile
constexpr uint32_t kStoreThreads = 256;
static_assert(kChannels == kQuantBlock);

LC_DEVICE void sync_consumers() { ptx::named_barrier_sync(kStoreBarrier, kStoreThreads); }

// A thread's sum[slab][i] is gate if i % 4 < 2, with up of the same channel and token at i + 2: channel 64 (warp / 4) +
// 32 slab + 8 (warp % 4) + lane / 4, token 8 (i / 4) + 2 (lane % 4) + i % 2. Replaces gate by h.
template <uint32_t kWidth>
LC_DEVICE void activate(float (&sum)[kSlabs][kWidth / 2]) {
  LC_UNROLL
  for (uint32_t c = 0; c < kWidth / 8; ++c) {
    LC_UNROLL
    for (uint32_t slab = 0; slab < kSlabs; ++slab) {
      LC_UNROLL
      for (uint32_t i = 0; i < 2; ++i) {
        float& h = sum[slab][4 * c + i];
        h = ptx::multiply_rn(ptx::silu(h), sum[slab][4 * c + 2 + i]);
      }
    }
  }
}

// Each warp stores its largest |h| of every token in shared memory.
template <uint32_t kWidth>
LC_DEVICE void store_maxima(uint32_t amax, uint32_t warp_channel, uint32_t channels,
                            const float (&sum)[kSlabs][kWidth / 2]) {
  const uint32_t lane = ptx::lane_index();
  LC_UNROLL
  for (uint32_t c = 0; c < kWidth / 8; ++c) {
    uint32_t largest[2] = {};
    LC_UNROLL
    for (uint32_t slab = 0; slab < kSlabs; ++slab) {
      // NOTE: rows beyond the weight are zeros, and products with them can be NaN.
      if (warp_channel + kSlabChannels * slab >= channels) continue;
      LC_UNROLL
      for (uint32_t i = 0; i < 2; ++i)
        largest[i] = device::Max()(largest[i], device::float_bits(sum[slab][4 * c + i]) & device::kAbsMask);
    }
    LC_UNROLL
    for (uint32_t i = 0; i < 2; ++i) {
      LC_UNROLL
      for (uint32_t mask = 4; mask < 32; mask *= 2)  // lanes of the same tokens
        largest[i] = device::Max()(largest[i], ptx::shuffle_xor(largest[i], mask));
      if (lane < 4) ptx::store_shared(amax + kAmaxBytes * (8 * c + 2 * lane + i) + 4 * ptx::warp_index(), largest[i]);
    }
  }
}

// In one thread: computes a token's scale from the maxima of 8 warps and stores it in their place.
LC_DEVICE float reduce_scale(uint32_t amax) {
  const ptx::Vec16 low = ptx::load_shared<ptx::Vec16>(amax), high = ptx::load_shared<ptx::Vec16>(amax + 16);
  uint32_t largest = low.x;
  for (const uint32_t other : {low.y, low.z, low.w, high.x, high.y, high.z, high.w})
    largest = device::Max()(largest, other);
  const device::Fp8Scale scale = device::make_fp8_scale(largest);
  ptx::store_shared(amax, ptx::Vec16{device::float_bits(scale.divisor), device::float_bits(scale.inverse),
                                     device::float_bits(scale.negated), 0});
  return scale.value;
}

// Columns beyond the tile's tokens hold garbage that is never stored.
template <uint32_t kWidth>
LC_DEVICE void quantise(uint32_t amax, uint32_t codes, uint32_t warp_channel, const float (&sum)[kSlabs][kWidth / 2]) {
  const uint32_t lane = ptx::lane_index();
  LC_UNROLL
  for (uint32_t c = 0; c < kWidth / 8; ++c) {
    const uint32_t token = 8 * c + 2 * (lane % 4);
    float ratio[2][kSlabs];
    LC_UNROLL
    for (uint32_t i = 0; i < 2; ++i) {
      const ptx::Vec16 v = ptx::load_shared<ptx::Vec16>(amax + kAmaxBytes * (token + i));
      const device::Fp8Scale scale{0.0f, device::bits_float(v.x), device::bits_float(v.y), device::bits_float(v.z)};
      LC_UNROLL
      for (uint32_t slab = 0; slab < kSlabs; ++slab)
        ratio[i][slab] = device::divide_by_scale(sum[slab][4 * c + i], scale);
    }
    const uint32_t four = ptx::pack_e4m3x4(ratio[0][0], ratio[0][1], ratio[1][0], ratio[1][1]);
    LC_UNROLL
    for (uint32_t i = 0; i < 4; ++i)
      ptx::store_shared(codes + (token + i / 2) * kStorePitch + warp_channel + lane / 4 + i % 2 * kSlabChannels,
                        static_cast<uint8_t>(four >> 8 * i));
  }
}

// h in bf16. As in store_bulk, a transposed 8x8 matrix holds a token's 8 channels; a warp has one of each slab.
template <uint32_t kWidth>
LC_DEVICE void round_to_bf16(uint32_t rows, uint32_t warp_channel, const float (&sum)[kSlabs][kWidth / 2]) {
  const uint32_t lane = ptx::lane_index();
  const uint32_t to = rows + lane % 8 * kWidePitch + 2 * (warp_channel + lane / 8 % 2 * kSlabChannels);
  LC_UNROLL
  for (uint32_t c = 0; c < kWidth / 8; ++c)
    ptx::store_matrix<2, true>(to + c * 8 * kWidePitch, {ptx::pack_bf16x2(sum[0][4 * c], sum[0][4 * c + 1]),
                                                         ptx::pack_bf16x2(sum[1][4 * c], sum[1][4 * c + 1])});
}

// Stores the rows, `bytes` of each, where bulk copies cannot.
LC_DEVICE void copy_rows(const MoeSwigluGemmParams& p, uint32_t rows, uint32_t pitch, const Tile& tile, uint32_t first,
                         uint32_t bytes) {
  const bool wide = ((reinterpret_cast<uintptr_t>(p.h.data) | p.h.row_stride) & 7) == 0;
  const uint32_t chunks = bytes / 8;
  for (uint32_t i = ptx::thread_index(); i < tile.tokens * chunks; i += kStoreThreads) {
    const uint32_t token = i / chunks, at = i % chunks * 8;
    const ptx::Vec8 eight = ptx::load_shared<ptx::Vec8>(rows + token * pitch + at);
    uint8_t* to = p.h.at(0, tile.row + token) + first + at;
    wide ? device::store_codes<true>(to, eight) : device::store_codes<false>(to, eight);
  }
}

// Called by all consumers. Stores exactly the tile's tokens and the channels that exist.
template <uint32_t kWidth>
LC_DEVICE void store_swiglu_tile(const MoeSwigluGemmParams& p, uint32_t base, const Tile& tile,
                                 float (&sum)[kSlabs][kWidth / 2]) {
  const uint32_t thread = ptx::thread_index(), warp = ptx::warp_index();
  const uint32_t amax = base + p.gemm.smem.amax, rows = base + p.gemm.smem.output;
  const uint32_t pitch = p.quantised ? kStorePitch : kWidePitch, size = p.quantised ? 1 : 2;
  const uint32_t channel = tile.weight_tile * kChannels, width = p.gemm.n / 2;
  const uint32_t channels = width - channel < kChannels ? width - channel : kChannels;
  const uint32_t warp_channel = warp / 4 * (kSlabs * kSlabChannels) + warp % 4 * 8;
  activate<kWidth>(sum);
  if (p.quantised) store_maxima<kWidth>(amax, warp_channel, channels, sum);
  ptx::bulk_wait_read<0>();  // this thread's copy has read `rows`; then the barrier, for all copies
  sync_consumers();
  if (p.quantised) {
    if (thread < tile.tokens) {
      const float scale = reduce_scale(amax + kAmaxBytes * thread);
      ptx::store_global(p.sh.at(0, tile.row + thread) + tile.weight_tile * p.sh.column_stride, scale);
    }
    sync_consumers();
    quantise<kWidth>(amax, rows, warp_channel, sum);
  } else {
    round_to_bf16<kWidth>(rows, warp_channel, sum);
  }
  ptx::fence_proxy_async_shared();
  sync_consumers();  // after it the next tile may overwrite the scales
  if (!p.bulk_h) {
    copy_rows(p, rows, pitch, tile, size * channel, size * channels);
  } else if (thread < tile.tokens) {
    ptx::bulk_store(p.h.at(0, tile.row + thread) + size * channel, rows + thread * pitch, size * channels);
  }
  ptx::bulk_commit();
}

}  // namespace longcat_ops::moe_gemm
