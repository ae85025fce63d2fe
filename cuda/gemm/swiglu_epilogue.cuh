// Turns a tile's sums of gate and up into h = silu(gate) * up, quantised 1x128: the tile's 128 channels of a token
// share a scale. All of it is float32, with the functions of the quantisers.
#pragma once

#include "device/fp8_scale.cuh"
#include "device/math.cuh"
#include "device/warp_reduce.cuh"
#include "gemm/scheduler.cuh"

namespace longcat_ops::moe_gemm {

struct MoeSwigluGemmParams {
  MoeGemmParams gemm;  // without its output
  Stack<uint8_t> h;    // e4m3 [1, rows, n / 2]
  Stack<float> sh;     // [1, rows, ceil(n / 256)]
  bool bulk_h;         // rows of h on 16-byte boundaries
};

constexpr uint32_t kSlabs = 2;  // per consumer warpgroup, of 64 weight rows each, so 32 channels
constexpr uint32_t kSlabChannels = kWarpgroupRows / 2;
constexpr uint32_t kChannels = kSlabs * kSlabChannels * 2;  // per tile
constexpr uint32_t kStoreThreads = 256;
static_assert(kChannels == kQuantBlock);

LC_DEVICE void sync_consumers() { ptx::named_barrier_sync(kStoreBarrier, kStoreThreads); }

// A thread's sum[slab][i] is gate if i % 4 < 2, with up of the same channel and token at i + 2: channel 64 (warp / 4) +
// 32 slab + 8 (warp % 4) + lane / 4, token 8 (i / 4) + 2 (lane % 4) + i % 2. Replaces gate by h; each warp stores its
// largest |h| of every token in shared memory.
template <uint32_t kWidth>
LC_DEVICE void activate(uint32_t amax, uint32_t warp_channel, uint32_t channels, float (&sum)[kSlabs][kWidth / 2]) {
  const uint32_t lane = ptx::lane_index();
  LC_UNROLL
  for (uint32_t c = 0; c < kWidth / 8; ++c) {
    uint32_t largest[2] = {};
    LC_UNROLL
    for (uint32_t slab = 0; slab < kSlabs; ++slab) {
      // NOTE: rows beyond the weight are zeros, and products with them can be NaN.
      if (warp_channel + kSlabChannels * slab >= channels) continue;
      LC_UNROLL
      for (uint32_t i = 0; i < 2; ++i) {
        float& h = sum[slab][4 * c + i];
        h = ptx::multiply_rn(ptx::silu(h), sum[slab][4 * c + 2 + i]);
        largest[i] = device::Max()(largest[i], device::float_bits(h) & device::kAbsMask);
      }
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

// Stores the codes where bulk copies cannot.
LC_DEVICE void copy_codes(const MoeSwigluGemmParams& p, uint32_t codes, const Tile& tile, uint32_t channel,
                          uint32_t channels) {
  const bool wide = ((reinterpret_cast<uintptr_t>(p.h.data) | p.h.row_stride) & 7) == 0;
  const uint32_t chunks = channels / device::kChunk;
  for (uint32_t i = ptx::thread_index(); i < tile.tokens * chunks; i += kStoreThreads) {
    const uint32_t token = i / chunks, at = i % chunks * device::kChunk;
    const ptx::Vec8 eight = ptx::load_shared<ptx::Vec8>(codes + token * kStorePitch + at);
    uint8_t* to = p.h.at(0, tile.row + token) + channel + at;
    wide ? device::store_codes<true>(to, eight) : device::store_codes<false>(to, eight);
  }
}

// Called by all consumers. Stores exactly the tile's tokens and the channels that exist.
template <uint32_t kWidth>
LC_DEVICE void store_swiglu_tile(const MoeSwigluGemmParams& p, uint32_t base, const Tile& tile,
                                 float (&sum)[kSlabs][kWidth / 2]) {
  const uint32_t thread = ptx::thread_index(), warp = ptx::warp_index();
  const uint32_t amax = base + p.gemm.smem.amax, codes = base + p.gemm.smem.output;
  const uint32_t channel = tile.weight_tile * kChannels, width = p.gemm.n / 2;
  const uint32_t channels = width - channel < kChannels ? width - channel : kChannels;
  const uint32_t warp_channel = warp / 4 * (kSlabs * kSlabChannels) + warp % 4 * 8;
  activate<kWidth>(amax, warp_channel, channels, sum);
  ptx::bulk_wait_read<0>();  // this thread's copy has read `codes`; then the barrier, for all copies
  sync_consumers();
  if (thread < tile.tokens) {
    const float scale = reduce_scale(amax + kAmaxBytes * thread);
    ptx::store_global(p.sh.at(0, tile.row + thread) + tile.weight_tile * p.sh.column_stride, scale);
  }
  sync_consumers();
  quantise<kWidth>(amax, codes, warp_channel, sum);
  ptx::fence_proxy_async_shared();
  sync_consumers();  // after it the next tile may overwrite the scales
  if (!p.bulk_h) {
    copy_codes(p, codes, tile, channel, channels);
  } else if (thread < tile.tokens) {
    ptx::bulk_store(p.h.at(0, tile.row + thread) + channel, codes + thread * kStorePitch, channels);
  }
  ptx::bulk_commit();
}

}  // namespace longcat_ops::moe_gemm
