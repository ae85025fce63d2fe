// A grouped-scale fp8 GEMM with two consumer warpgroups and a producer, and the bugs that can be planted in it.
#pragma once

#include "ptx/ptx.cuh"

namespace test {

using namespace longcat_ops::ptx;

enum class Bug {
  kNone,
  kNoFullWait,
  kNoWgmmaWait,
  kWrongSwizzle,
  kNoWgmmaFence,
  kNoProxyFence,
  kNoEpilogueBarrier,
  kEarlyRelease,
  kNoEmptyWait,
  kTxShort,
  kTxLong,
  kPhaseStuck,
  kScaleStage,
  kNoInitFence,
  kNoInitSync,
  kTouchAccumulator,
  kWrongEmptyCount,
  kNoStoreWait,
  kBadStride,
  kGlobalOutOfBounds,
  kNoWarpSync,
  kFenceFirst,
};

struct GemmParams {
  TensorMap weight, x, out;
  const float* weight_scale;  // [weight rows / 128][k / 128]
  const float* x_scale;       // [k / 128][padded tokens]
  uint32_t tokens, padded_tokens, weight_rows, k;
};

template <int N>
struct GemmLayout {
  static constexpr uint32_t kStages = 4;
  static constexpr uint32_t kA = 128 * 128, kB = N * 128 < 1024 ? 1024 : N * 128;
  static constexpr uint32_t kOut = N * 128 < 1024 ? 1024 : N * 128, kScales = N * 4 < 128 ? 128 : N * 4;
  static constexpr uint32_t kAtB = kStages * kA, kAtOut = kAtB + kStages * kB, kAtScales = kAtOut + 2 * kOut;
  static constexpr uint32_t kAtBarriers = kAtScales + kStages * kScales;
  static constexpr uint32_t kBytes = kAtBarriers + 16 * kStages;
};

template <int N>
struct GemmStages {
  using Layout = GemmLayout<N>;
  uint32_t base;
  constexpr uint32_t a(uint32_t s) const { return base + s * Layout::kA; }
  constexpr uint32_t b(uint32_t s) const { return base + Layout::kAtB + s * Layout::kB; }
  constexpr uint32_t scales(uint32_t s) const { return base + Layout::kAtScales + s * Layout::kScales; }
  constexpr uint32_t out(uint32_t group) const { return base + Layout::kAtOut + group * Layout::kOut; }
  constexpr uint32_t full(uint32_t s) const { return base + Layout::kAtBarriers + 16 * s; }
  constexpr uint32_t empty(uint32_t s) const { return full(s) + 8; }
};

template <int N, Bug BUG>
LC_DEVICE void produce(const GemmParams& p, GemmStages<N> smem) {
  using Layout = GemmLayout<N>;
  const uint32_t row_tiles = p.weight_rows / 128, tiles = row_tiles * ((p.tokens + N - 1) / N);
  uint32_t step = 0;
  for (uint32_t tile = block_index(); tile < tiles; tile += grid_size()) {
    const int32_t row = int32_t(tile % row_tiles * 128), token = int32_t(tile / row_tiles * N);
    for (uint32_t j = 0; j < p.k / 128; ++j, ++step) {
      const uint32_t s = step % Layout::kStages, phase = step / Layout::kStages & 1;
      if (BUG != Bug::kNoEmptyWait) mbarrier_wait(smem.empty(s), BUG == Bug::kPhaseStuck ? 1 : phase ^ 1);
      const uint32_t bytes = Layout::kA + N * 128 + N * 4;
      mbarrier_arrive_expect_tx(smem.full(s), BUG == Bug::kTxShort  ? bytes - 128
                                              : BUG == Bug::kTxLong ? bytes + 128
                                                                    : bytes);
      tma_load(smem.a(s), &p.weight, smem.full(s), {int32_t(j * 128), row});
      tma_load(smem.b(s), &p.x, smem.full(s), {int32_t(j * 128), token});
      const uint32_t scale_row = BUG == Bug::kGlobalOutOfBounds ? j + 1 : j;
      bulk_load(smem.scales(s), p.x_scale + uint64_t(scale_row) * p.padded_tokens + token, N * 4, smem.full(s));
    }
  }
}

template <int N, Bug BUG>
LC_DEVICE void multiply_block(const GemmParams& p, GemmStages<N> smem, uint32_t group, uint32_t s, uint32_t phase,
                              float weight_scale, float (&sum)[N / 2]) {
  using Layout = GemmLayout<N>;
  const uint32_t lane = lane_index();
  float acc[N / 2], x_scale[N / 4];
  (void)p;
  if (BUG == Bug::kFenceFirst) wgmma_fence();
  if (BUG != Bug::kNoFullWait) mbarrier_wait(smem.full(s), phase);
  const uint32_t scales = smem.scales(BUG == Bug::kScaleStage ? s + 1 : s);
  for (int c = 0; c < N / 8; ++c)
    for (int e = 0; e < 2; ++e)
      x_scale[2 * c + e] = load_shared<float>(scales + uint32_t(c * 8 + int(lane % 4) * 2 + e) * 4);
  if (BUG != Bug::kNoWgmmaFence && BUG != Bug::kFenceFirst) wgmma_fence();
  for (uint32_t kk = 0; kk < 4; ++kk) {
    const uint64_t a = make_descriptor(smem.a(s) + group * 64 * 128 + kk * 32, 16, BUG == Bug::kBadStride ? 2048 : 1024,
                                       BUG == Bug::kWrongSwizzle ? Swizzle::k64B : Swizzle::k128B);
    const uint64_t b = make_descriptor(smem.b(s) + kk * 32, 16, 1024, Swizzle::k128B);
    wgmma_e4m3<N>(acc, a, b, kk > 0);
  }
  wgmma_commit();
  if (BUG == Bug::kEarlyRelease && lane == 0) mbarrier_arrive(smem.empty(s));
  if (BUG == Bug::kTouchAccumulator) acc[0] += 1.0f;
  if (BUG != Bug::kNoWgmmaWait) wgmma_wait<0>();
  if (BUG != Bug::kNoWarpSync) warp_sync();  // lane 0 frees the stage once all lanes have read its scales
  if (BUG != Bug::kEarlyRelease && lane == 0) mbarrier_arrive(smem.empty(s));
  for (int i = 0; i < N / 2; ++i) sum[i] += acc[i] * (weight_scale * x_scale[2 * (i / 4) + (i & 1)]);
  static_assert(Layout::kStages > 1);
}

// Stores the tile transposed through shared memory, as a 128B-swizzled tile of [token][64 weight rows].
template <int N, Bug BUG>
LC_DEVICE void store_tile(const GemmParams& p, GemmStages<N> smem, uint32_t group, int32_t row, int32_t token,
                          const float (&sum)[N / 2]) {
  const uint32_t lane = lane_index(), warp = warp_index();
  const bool storer = lane == 0 && warp % 4 == 0;
  if (storer && BUG != Bug::kNoStoreWait) bulk_wait_read<0>();
  named_barrier_sync(1 + group, 128);
  for (uint32_t c = 0; c < N / 8; ++c) {
    uint32_t address = smem.out(group) + (c * 8 + lane % 8) * 128 + warp % 4 * 32 + (lane / 8 & 1) * 16;
    address ^= (address >> 7 & 7) << 4;
    store_matrix<2, true>(address,
                          {pack_bf16x2(sum[4 * c], sum[4 * c + 1]), pack_bf16x2(sum[4 * c + 2], sum[4 * c + 3])});
  }
  if (BUG != Bug::kNoProxyFence) fence_proxy_async_shared();
  if (BUG != Bug::kNoEpilogueBarrier) named_barrier_sync(1 + group, 128);
  if (storer) {
    tma_store(&p.out, smem.out(group), {row + int32_t(group * 64), token});
    bulk_commit();
  }
}

template <int N, Bug BUG>
LC_DEVICE void consume(const GemmParams& p, GemmStages<N> smem, uint32_t group) {
  const uint32_t row_tiles = p.weight_rows / 128, tiles = row_tiles * ((p.tokens + N - 1) / N), blocks = p.k / 128;
  uint32_t step = 0;
  for (uint32_t tile = block_index(); tile < tiles; tile += grid_size()) {
    float sum[N / 2] = {};
    for (uint32_t j = 0; j < blocks; ++j, ++step) {
      const float weight_scale = load_global(p.weight_scale + tile % row_tiles * blocks + j);
      multiply_block<N, BUG>(p, smem, group, step % GemmLayout<N>::kStages, step / GemmLayout<N>::kStages & 1,
                             weight_scale, sum);
    }
    store_tile<N, BUG>(p, smem, group, int32_t(tile % row_tiles * 128), int32_t(tile / row_tiles * N), sum);
  }
  if (lane_index() == 0 && warp_index() % 4 == 0) bulk_wait_read<0>();
}

template <int N, Bug BUG>
LC_KERNEL LC_LAUNCH_BOUNDS(384, 1) gemm_kernel(LC_GRID_CONSTANT GemmParams p) {
  using Layout = GemmLayout<N>;
  const GemmStages<N> smem{dynamic_smem_base()};
  if (thread_index() == 0) {
    for (uint32_t s = 0; s < Layout::kStages; ++s) {
      mbarrier_init(smem.full(s), 1);
      mbarrier_init(smem.empty(s), BUG == Bug::kWrongEmptyCount ? 9 : 8);
    }
    if (BUG != Bug::kNoInitFence) fence_mbarrier_init();
  }
  if (BUG != Bug::kNoInitSync) sync_threads();
  const uint32_t group = thread_index() / 128;
  if (group == 2) {
    setmaxnreg_dec<40>();
    if (warp_index() == 8 && elect_one()) produce<N, BUG>(p, smem);
  } else {
    setmaxnreg_inc<232>();
    consume<N, BUG>(p, smem, group);
  }
}

}  // namespace test
