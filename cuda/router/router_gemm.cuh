// The router's logits: out = x @ w.T, as accurate as float32, on tensor cores of bf16. w is the sum of three bf16 terms
// (split_bf16x3), x is bf16, or f32 that is split likewise. The kernel adds the products of terms smallest first: all
// three with x, or the six largest of nine.
//
// Floor: the terms are read once, 6 * experts * columns bytes: 28.3 MB or 9.4 us at 3.0 TB/s for 768 x 6144. Products
// of the terms bound it above 100 tokens (docs/kernels.md).
#pragma once

#include "device/pipeline.cuh"
#include "device/vector_io.cuh"
#include "device/wgmma_tile.cuh"
#include "router/config.h"

namespace longcat_ops::router {

struct RouterGemmParams {
  ptx::TensorMap weight_map;  // bytes [3, experts, 2 * columns], boxes of 64 rows
  ptx::TensorMap token_map;   // bytes [1, tokens, 2 * columns], boxes of kWidth rows
  const void* x;              // [tokens, columns], used if no map describes it
  int64_t x_stride;           // elements
  float* out;                 // [tokens, experts]
  int64_t out_stride;         // elements
  uint32_t tokens, experts, columns;
  uint32_t pieces;
  SmemLayout smem;
};

// A block's part of the work: a tile of experts, some tokens, and a piece of the stages of K.
struct Work {
  uint32_t expert, token, begin, end;
};

template <uint32_t kWidth>
LC_DEVICE Work work_of(const RouterGemmParams& p) {
  const uint32_t cluster = ptx::block_index() / p.pieces, rank = ptx::cluster_rank();
  const uint32_t stages = (p.columns + kStageColumns - 1) / kStageColumns;
  // Blocks of one tile are neighbours, so that all chunks of tokens but one find its weights in L2.
  const uint32_t chunks = (p.tokens + kWidth - 1) / kWidth;
  return {cluster / chunks * kTileExperts, cluster % chunks * kWidth, stages * rank / p.pieces,
          stages * (rank + 1) / p.pieces};
}

LC_DEVICE device::Pipeline stages_of(const RouterGemmParams& p, uint32_t base) {
  return device::Pipeline(base + p.smem.barriers, p.smem.stages);
}

// Called by one thread. kTokens: kMapped loads the tokens too.
template <uint32_t kWidth, Tokens kTokens>
LC_DEVICE void load_stages(const RouterGemmParams& p, uint32_t base, const Work& work) {
  constexpr bool kMapped = kTokens == Tokens::kMapped;
  constexpr uint32_t kWeightBytes = kTerms * kTileExperts * kStageBytes;
  ptx::prefetch_tensormap(&p.weight_map);
  if constexpr (kMapped) ptx::prefetch_tensormap(&p.token_map);
  ptx::grid_dependency_wait();
  device::Pipeline stages = stages_of(p, base);
  for (uint32_t block = work.begin; block < work.end; ++block, stages.advance()) {
    const uint32_t to = base + stages.stage * p.smem.stage_bytes;
    const auto column = static_cast<int32_t>(block * kStageBytes);
    stages.wait_empty();
    ptx::mbarrier_arrive_expect_tx(stages.full(), kWeightBytes + (kMapped ? kWidth * kStageBytes : 0));
    LC_UNROLL
    for (uint32_t term = 0; term < kTerms; ++term) {
      const int32_t at[] = {column, static_cast<int32_t>(work.expert), static_cast<int32_t>(term)};
      ptx::tma_load(to + term * kTileExperts * kStageBytes, &p.weight_map, stages.full(), at);
    }
    if constexpr (kMapped) {
      const int32_t at[] = {column, static_cast<int32_t>(work.token), 0};
      ptx::tma_load(to + kWeightBytes, &p.token_map, stages.full(), at);
    }
  }
  ptx::grid_dependency_launch();  // the last loads are issued
}

// The next term of eight values, which keep what it leaves. An inf, also one that rounding gave, or NaN has no further
// terms.
LC_DEVICE ptx::Vec16 take_term(float (&values)[device::kChunk]) {
  uint32_t words[4];
  LC_UNROLL
  for (uint32_t i = 0; i < 4; ++i) {
    float *low = values + 2 * i, *high = low + 1, rounded[2];
    words[i] = ptx::pack_bf16x2(*low, *high);
    ptx::unpack_bf16x2(words[i], rounded[0], rounded[1]);
    const auto rest = [](float value, float term) {
      const float left = ptx::add_rn(value, -term);
      return ptx::add_rn(left, -left) == 0.0f ? left : 0.0f;
    };
    *low = rest(*low, rounded[0]);
    *high = rest(*high, rounded[1]);
  }
  return {words[0], words[1], words[2], words[3]};
}

// Called by kTokenWarps warps, the first of which is `first_warp`: writes the tokens as TMA would, rows of 128 bytes,
// 16-byte chunks swizzled, zeros beyond the tokens and columns.
template <uint32_t kWidth, class Format>
LC_DEVICE void copy_tokens(const RouterGemmParams& p, uint32_t base, const Work& work, uint32_t first_warp) {
  using Storage = typename Format::Storage;
  constexpr uint32_t kWays = terms(sizeof(Storage) == 4 ? Tokens::kSplit : Tokens::kCopied);
  constexpr uint32_t kThreads = 32 * kTokenWarps;
  const uint32_t thread = ptx::thread_index() - 32 * first_warp;
  const bool wide = ((reinterpret_cast<uintptr_t>(p.x) | p.x_stride * sizeof(Storage)) & 15) == 0;
  ptx::grid_dependency_wait();
  device::Pipeline stages = stages_of(p, base);
  for (uint32_t block = work.begin; block < work.end; ++block, stages.advance()) {
    const uint32_t to = base + stages.stage * p.smem.stage_bytes + kTerms * kTileExperts * kStageBytes;
    stages.wait_empty();
    for (uint32_t i = thread; i < kWidth * 8; i += kThreads) {
      const uint32_t row = i / 8, chunk = i % 8, column = block * kStageColumns + chunk * device::kChunk;
      device::Chunk<Format> loaded{};
      if (work.token + row < p.tokens && column < p.columns) {  // columns are a multiple of 8
        const Storage* from = static_cast<const Storage*>(p.x) + (work.token + row) * p.x_stride + column;
        loaded = wide ? device::load_chunk<Format, true>(from) : device::load_chunk<Format, false>(from);
      }
      float values[device::kChunk];
      device::unpack(loaded, values);
      LC_UNROLL
      for (uint32_t term = 0; term < kWays; ++term)
        ptx::store_shared(to + (term * kWidth + row) * kStageBytes + 16 * (chunk ^ row % 8), take_term(values));
    }
    ptx::fence_proxy_async_shared();  // wgmma reads through the async proxy
    device::arrive_warp(stages.full());
  }
}

// sum[i] of a thread is as in wgmma_bf16.
template <uint32_t kWidth, Tokens kTokens>
LC_DEVICE void multiply(const RouterGemmParams& p, uint32_t base, const Work& work, float (&sum)[kWidth / 2]) {
  constexpr uint32_t kStep = kTileExperts * kStageBytes / 16, kTokenStep = kWidth * kStageBytes / 16;
  device::Pipeline stages = stages_of(p, base);
  const uint64_t weights = device::descriptor_of(base), tokens = device::descriptor_of(base) + kTerms * kStep;
  for (uint32_t block = work.begin; block < work.end; ++block, stages.advance()) {
    const uint32_t at = stages.stage * (p.smem.stage_bytes / 16);
    float acc[kWidth / 2];
    stages.wait_full();  // precedes wgmma_fence, which orders operand reads after it
    ptx::wgmma_fence();
    // Terms i of w and j of x: i + j = 2 first, whose products are 2^-16 of the largest.
    LC_UNROLL
    for (uint32_t order = kTerms; order-- > 0;) {
      LC_UNROLL
      for (uint32_t j = 0; j < terms(kTokens) && j <= order; ++j) {
        const uint32_t i = order - j;
        LC_UNROLL
        for (uint32_t k = 0; k < kStageBytes; k += 32)
          ptx::wgmma_bf16<kWidth>(acc, weights + at + i * kStep + k / 16, tokens + at + j * kTokenStep + k / 16,
                                  k > 0 || j > 0 || order + 1 < kTerms);
      }
    }
    ptx::wgmma_commit();
    device::add_products<0>(acc, sum);
    device::arrive_warp(stages.empty());
  }
}

// Called by the whole cluster. Each block adds the pieces of some experts, in the order of the blocks.
template <uint32_t kWidth>
LC_DEVICE void add_pieces(const RouterGemmParams& p, uint32_t base, const Work& work, uint32_t threads) {
  ptx::fence_release_shared_cluster();  // shared memory only: a full release would also wait for global memory
  ptx::cluster_arrive_relaxed();
  ptx::cluster_wait_acquire();
  const uint32_t experts = kTileExperts / p.pieces, first = ptx::cluster_rank() * experts;
  for (uint32_t i = ptx::thread_index(); i < experts * kWidth; i += threads) {
    const uint32_t token = i / experts, expert = first + i % experts;
    const uint32_t at = base + p.smem.sums + (token * kSumPitch + expert) * 4;
    float sum = ptx::load_shared_cluster<float>(ptx::cluster_address(at, 0));
    for (uint32_t piece = 1; piece < p.pieces; ++piece)
      sum = ptx::add_rn(sum, ptx::load_shared_cluster<float>(ptx::cluster_address(at, piece)));
    if (work.token + token < p.tokens && work.expert + expert < p.experts)
      ptx::store_global(p.out + (work.token + token) * p.out_stride + work.expert + expert, sum);
  }
  ptx::cluster_arrive_release();  // no block ends while another reads its sums
  ptx::cluster_wait_acquire();
}

// Warps 0 .. 3 multiply, warp 4 loads, the others copy or split tokens.
template <uint32_t kWidth, Tokens kTokens>
LC_KERNEL LC_LAUNCH_BOUNDS(threads(kTokens), 1) router_gemm_kernel(LC_GRID_CONSTANT RouterGemmParams p) {
  const uint32_t base = ptx::dynamic_smem_base(), warp = ptx::warp_index();
  if (ptx::thread_index() == 0) {
    device::init_pipeline(base + p.smem.barriers, p.smem.stages, 1 + (kTokens == Tokens::kMapped ? 0 : kTokenWarps),
                          kConsumerWarps);
    ptx::fence_mbarrier_init();
  }
  ptx::sync_threads();
  const Work work = work_of<kWidth>(p);
  if (warp == kConsumerWarps) {
    if (ptx::elect_one()) load_stages<kWidth, kTokens>(p, base, work);
    ptx::warp_sync();
  } else if (warp > kConsumerWarps) {
    if constexpr (kTokens == Tokens::kSplit) {
      copy_tokens<kWidth, device::Float32>(p, base, work, kConsumerWarps + 1);
    } else if constexpr (kTokens == Tokens::kCopied) {
      copy_tokens<kWidth, device::BFloat16>(p, base, work, kConsumerWarps + 1);
    }
  } else {
    float sum[kWidth / 2] = {};
    multiply<kWidth, kTokens>(p, base, work, sum);
    const uint32_t lane = ptx::lane_index(), to = base + p.smem.sums;
    LC_UNROLL
    for (uint32_t i = 0; i < kWidth / 2; ++i) {
      const uint32_t expert = warp * 16 + lane / 4 + 8 * (i / 2 % 2), token = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
      ptx::store_shared(to + (token * kSumPitch + expert) * 4, sum[i]);
    }
  }
  ptx::grid_dependency_wait();  // before anything is stored
  add_pieces<kWidth>(p, base, work, threads(kTokens));
}

}  // namespace longcat_ops::router
