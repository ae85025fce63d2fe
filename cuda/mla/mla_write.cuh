// mla_write: the latent row of each token, at its place in the pages of the cache: RMSNorm of the latent part, and the
// shared key turned by RoPE.
//
// Floor per token of LongCat-Flash in bf16: 1152 bytes of kv read and as many written, 256 bytes of rope, 12 of place;
// the weight (2 KB) is shared. At 192 tokens these are 0.5 MB: 0.2 us at 3 TB/s, so a launch is all that it costs. A
// block takes a token; a token without a place ends its block at once. The sum of squares has the order of
// norm_row.cuh.
#pragma once

#include "device/norm_row.cuh"
#include "device/warp_reduce.cuh"
#include "mla/pages.cuh"
#include "mla/rope.cuh"

namespace longcat_ops::mla {

struct MlaWriteParams {
  const void* kv;                      // [T, latent + rope_width]
  const float* weight;                 // [latent]
  const float* rope;                   // [positions, rope_width], (cos, sin) of each pair
  const int32_t *sequence, *position;  // [T]
  void* rows;                          // [pages, kPageRows, latent + rope_width]
  PageView pages;
  int64_t stride_kv, stride_rope, stride_page, stride_row;
  int64_t positions;
  uint32_t latent, pairs;
  uint32_t threads;  // of a block: a multiple of 32
  float eps;
};

constexpr uint32_t kWriteSmemBytes = device::kReduceScratchBytes;

// Turns pair `pair` of x by row `position` of the table; NaN where it has no such row.
template <class Format>
LC_DEVICE void turn_pair(const MlaWriteParams& p, int64_t position, uint32_t pair, const typename Format::Storage* x,
                         typename Format::Storage* y) {
  using namespace device;
  float values[kChunk], turned[kChunk] = {};
  unpack(load_elements<Format>(x + 2 * pair, 2), values);
  turned[0] = turned[1] = bits_float(kNanBits);
  if (position < p.positions) {
    const float* angle = p.rope + position * p.stride_rope + 2 * pair;
    const float by[] = {ptx::load_global(angle), ptx::load_global(angle + 1)};
    turn(values, by, turned);
  }
  store_elements<Format>(y + 2 * pair, pack<Format>(turned), 2);
}

// kWide: latent is whole chunks, aligned for one access each.
template <class Format, bool kWide>
LC_KERNEL LC_LAUNCH_BOUNDS(device::kNormMaxThreads, 4) mla_write_kernel(LC_GRID_CONSTANT MlaWriteParams p) {
  using namespace device;
  using Storage = typename Format::Storage;
  const uint32_t thread = ptx::thread_index();
  const int64_t token = ptx::block_index();

  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  const int64_t position = ptx::load_global(p.position + token);
  const int64_t page = page_of(p.pages, ptx::load_global(p.sequence + token), position);
  if (page < 0) return;
  const auto* x = static_cast<const Storage*>(p.kv) + token * p.stride_kv;
  auto* y = static_cast<Storage*>(p.rows) + page * p.stride_page + position % kPageRows * p.stride_row;

  const auto load = [&](uint32_t at) {
    if constexpr (kWide) return load_chunk<Format, true>(x + at);
    return load_elements<Format>(x + at, p.latent - at);
  };
  float sum = 0.0f, values[kChunk];
  for (uint32_t at = kChunk * thread; at < p.latent; at += kChunk * p.threads) {
    unpack(load(at), values);
    sum = ptx::add_rn(sum, sum_of_squares(values));
  }
  sum = reduce_block(sum, Sum(), p.threads / 32, ptx::dynamic_smem_base());
  const float inverse_rms = inverse_rms_of(sum, static_cast<float>(p.latent), p.eps);
  for (uint32_t at = kChunk * thread; at < p.latent; at += kChunk * p.threads) {
    float weight[kChunk];
    if constexpr (kWide) {
      load_floats<true>(p.weight + at, weight);
      store_chunk<Format, true>(y + at, normalise(load(at), inverse_rms, weight));
    } else {
      unpack(load_elements<Float32>(p.weight + at, p.latent - at), weight);
      store_elements<Format>(y + at, normalise(load(at), inverse_rms, weight), p.latent - at);
    }
  }
  for (uint32_t pair = thread; pair < p.pairs; pair += p.threads)
    turn_pair<Format>(p, position, pair, x + p.latent, y + p.latent);
}

}  // namespace longcat_ops::mla
