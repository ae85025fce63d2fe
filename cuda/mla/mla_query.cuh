// mla_query: the queries as latent rows meet them. The product of each head's first elements with its weights, and the
// other elements turned by RoPE. bf16, with sums in float32.
//
// Floor: the weights are read once, 2 * heads * latent * nope bytes, 8.4 MB of LongCat-Flash, and per token 24.6 KB of
// q are read and 73.7 KB written: 27 MB at 192 tokens, 9.1 us at 3.0 TB/s. So memory is the bound. A block has up to
// 256 rows of a head's weights, 128 blocks for 64 heads of 512: it keeps them in shared memory, and the head's tokens
// pass through a ring in chunks.
//
// Weights are the A operand of wgmma, 64 rows for each warpgroup; tokens are the B operand. Every width sums in the
// same order, so a token's bits do not depend on the others.
#pragma once

#include "device/pipeline.cuh"
#include "device/vector_io.cuh"
#include "device/wgmma_tile.cuh"
#include "mla/query_config.h"
#include "mla/rope.cuh"

namespace longcat_ops::mla_query {

struct MlaQueryParams {
  ptx::TensorMap weight_map;  // bytes [heads, latent, 2 * nope], boxes of a block's rows
  ptx::TensorMap token_map;   // bytes [tokens, heads, 2 * nope], boxes of kWidth tokens of a head
  const uint16_t* q;          // [tokens, heads, nope + turned]
  const uint16_t* w_k;        // [heads, latent, nope]
  const float* rope;          // [positions, turned], (cos, sin) of each pair
  const int32_t* position;    // [tokens]
  uint16_t* out;              // [tokens, heads, latent + turned]
  int64_t stride_q, stride_q_head, stride_w_head, stride_w_row, stride_rope, stride_out, stride_out_head;
  int64_t positions;
  uint32_t tokens, latent, nope, turned;
  uint32_t warpgroups, tiles;  // that multiply; blocks of a head
  uint32_t weight_stages, token_stages;
  bool resident;
  SmemLayout smem;
};

// A block's part of the work: its head, its place among the head's blocks, and its first row of latent.
struct Work {
  uint32_t head, tile, row;
};

LC_DEVICE Work work_of(const MlaQueryParams& p) {
  // Blocks of a head are neighbours, so that all but one find its tokens in L2.
  const uint32_t head = ptx::block_index() / p.tiles, tile = ptx::block_index() % p.tiles;
  return {head, tile, tile * p.warpgroups * kWarpgroupRows};
}

LC_DEVICE device::Pipeline weights_of(const MlaQueryParams& p, uint32_t base) {
  return device::Pipeline(base + p.smem.weight_barriers, p.weight_stages);
}

LC_DEVICE device::Pipeline tokens_of(const MlaQueryParams& p, uint32_t base) {
  return device::Pipeline(base + p.smem.token_barriers, p.token_stages);
}

// Fills the next stage of a ring that begins at `first`. Called by one thread.
LC_DEVICE void load_stage(device::Pipeline& ring, uint32_t first, uint32_t rows, const ptx::TensorMap* map,
                          const int32_t (&at)[3]) {
  ring.wait_empty();
  ptx::mbarrier_arrive_expect_tx(ring.full(), rows * kStageBytes);
  ptx::tma_load(first + ring.stage * rows * kStageBytes, map, ring.full(), at);
  ring.advance();
}

// The same without a map, called by kCopyWarps warps: rows of 128 bytes, 16-byte chunks swizzled, zeros beyond the
// rows and columns that there are.
LC_DEVICE void copy_stage(device::Pipeline& ring, uint32_t first, uint32_t rows, const uint16_t* from, int64_t stride,
                          uint32_t rows_left, uint32_t columns_left) {
  const uint32_t to = first + ring.stage * rows * kStageBytes;
  ring.wait_empty();
  for (uint32_t i = ptx::thread_index() % (32 * kCopyWarps); i < rows * 8; i += 32 * kCopyWarps) {
    const uint32_t row = i / 8, chunk = i % 8;
    device::Chunk<device::BFloat16> loaded{};
    if (row < rows_left && chunk * device::kChunk < columns_left)  // columns are a multiple of 8
      loaded = device::load_chunk<device::BFloat16, false>(from + row * stride + chunk * device::kChunk);
    const auto& words = loaded.words;
    ptx::store_shared(to + row * kStageBytes + 16 * (chunk ^ row % 8),
                      ptx::Vec16{words[0], words[1], words[2], words[3]});
  }
  ptx::fence_proxy_async_shared();  // wgmma reads through the async proxy
  device::arrive_warp(ring.full());
  ring.advance();
}

// Brings the operands, in the order in which `multiply` takes them: the weights once if they stay, else for each chunk
// of tokens.
template <uint32_t kWidth, bool kWide>
LC_DEVICE void produce(const MlaQueryParams& p, uint32_t base, const Work& work) {
  const uint32_t rows = p.warpgroups * kWarpgroupRows;
  const auto head = static_cast<int32_t>(work.head), row = static_cast<int32_t>(work.row);
  if constexpr (kWide) {
    ptx::prefetch_tensormap(&p.weight_map);
    ptx::prefetch_tensormap(&p.token_map);
  }
  ptx::grid_dependency_wait();
  device::Pipeline weights = weights_of(p, base), tokens = tokens_of(p, base);
  for (uint32_t token = 0; token < p.tokens; token += kWidth) {
    for (uint32_t column = 0; column < p.nope; column += kStageColumns) {
      const bool read = token == 0 || !p.resident;
      if constexpr (kWide) {
        const auto byte = static_cast<int32_t>(2 * column);
        if (read) load_stage(weights, base, rows, &p.weight_map, {byte, row, head});
        load_stage(tokens, base + p.smem.tokens, kWidth, &p.token_map, {byte, head, static_cast<int32_t>(token)});
      } else {
        const uint16_t* w_k = p.w_k + work.head * p.stride_w_head + work.row * p.stride_w_row + column;
        const uint16_t* q = p.q + token * p.stride_q + work.head * p.stride_q_head + column;
        if (read) copy_stage(weights, base, rows, w_k, p.stride_w_row, p.latent - work.row, p.nope - column);
        copy_stage(tokens, base + p.smem.tokens, kWidth, q, p.stride_q, p.tokens - token, p.nope - column);
      }
    }
  }
  ptx::grid_dependency_launch();  // the last loads are issued
}

// Brings the block's weights into L2 while the kernel ahead ends. All SMs' writes meet there, so no line is stale.
LC_DEVICE void prefetch_weights(const MlaQueryParams& p, const Work& work) {
  const uint32_t lines = (p.nope + kStageColumns - 1) / kStageColumns, left = p.latent - work.row;
  const uint32_t rows = left < p.warpgroups * kWarpgroupRows ? left : p.warpgroups * kWarpgroupRows;
  const uint16_t* from = p.w_k + work.head * p.stride_w_head + work.row * p.stride_w_row;
  for (uint32_t i = ptx::thread_index(); i < rows * lines; i += 128 * p.warpgroups)
    ptx::prefetch_global_l2(from + i / lines * p.stride_w_row + i % lines * kStageColumns);
}

// Turns the last elements of q for the block's head. Tokens take turns among the head's blocks, and have 8 threads
// each. This precedes the products, because the block's weights are on their way meanwhile.
template <bool kWide>
LC_DEVICE void turn_rest(const MlaQueryParams& p, const Work& work) {
  using namespace device;
  const uint32_t first = work.tile + ptx::thread_index() / 8 * p.tiles, step = 16 * p.warpgroups * p.tiles;
  for (uint32_t token = first; token < p.tokens; token += step) {
    const int64_t position = ptx::load_global(p.position + token);
    const uint16_t* from = p.q + token * p.stride_q + work.head * p.stride_q_head + p.nope;
    uint16_t* to = p.out + token * p.stride_out + work.head * p.stride_out_head + p.latent;
    for (uint32_t at = ptx::thread_index() % 8 * kChunk; at < p.turned; at += 8 * kChunk) {
      const uint32_t count = p.turned - at;
      float values[kChunk], angles[kChunk], turned[kChunk];
      unpack(kWide ? load_chunk<BFloat16, kWide>(from + at) : load_elements<BFloat16>(from + at, count), values);
      LC_UNROLL
      for (uint32_t i = 0; i < kChunk; ++i) turned[i] = position < 0 ? 0.0f : bits_float(kNanBits);
      if (position >= 0 && position < p.positions) {
        const float* row = p.rope + position * p.stride_rope + at;
        unpack(kWide ? load_chunk<Float32, kWide>(row) : load_elements<Float32>(row, count), angles);
        LC_UNROLL
        for (uint32_t i = 0; i < kChunk; i += 2) mla::turn(values + i, angles + i, turned + i);
      }
      if constexpr (kWide) {
        store_chunk<BFloat16, true>(to + at, pack<BFloat16>(turned));
      } else {
        store_elements<BFloat16>(to + at, pack<BFloat16>(turned), count);
      }
    }
  }
}

// NOTE: with an id in a register the compiler would count all 16 barriers as used.
LC_DEVICE void sync_warpgroup(uint32_t warpgroup) {
  static_assert(kMostWarpgroups == 4);
  switch (warpgroup) {
    case 0: return ptx::named_barrier_sync(1, 128);
    case 1: return ptx::named_barrier_sync(2, 128);
    case 2: return ptx::named_barrier_sync(3, 128);
    default: return ptx::named_barrier_sync(4, 128);
  }
}

// Stores a chunk of tokens, from `token` on, by way of the warpgroup's part of shared memory: 128 bytes of a token at
// a time. A token of a negative position is 0.
template <uint32_t kWidth, bool kWide, uint32_t kStores>
LC_DEVICE void store(const MlaQueryParams& p, uint32_t base, const Work& work, uint32_t token,
                     const int32_t (&position)[kStores], const float (&sum)[kWidth / 2]) {
  const uint32_t lane = ptx::lane_index(), thread = ptx::thread_index() % 128, warpgroup = ptx::warp_index() / 4;
  const uint32_t buffer = base + p.smem.output + warpgroup * kWidth * kStorePitch;
  sync_warpgroup(warpgroup);  // the chunk before this one has left
  // A transposed 8x8 matrix holds a token's 8 rows in 16 bytes; lanes 0 .. 7 and 8 .. 15 address a warp's two.
  const uint32_t to = buffer + lane % 8 * kStorePitch + thread / 32 * 32 + lane / 8 % 2 * 16;
  LC_UNROLL
  for (uint32_t c = 0; c < kWidth / 8; ++c) {
    const float* v = sum + 4 * c;
    ptx::store_matrix<2, true>(to + c * 8 * kStorePitch, {ptx::pack_bf16x2(v[0], v[1]), ptx::pack_bf16x2(v[2], v[3])});
  }
  sync_warpgroup(warpgroup);
  const uint32_t column = work.row + warpgroup * kWarpgroupRows + thread % 8 * device::kChunk;
  LC_UNROLL
  for (uint32_t i = 0; i < kStores; ++i) {
    const uint32_t row = thread / 8 + 16 * i;
    if (row >= kWidth || token + row >= p.tokens || column >= p.latent) continue;
    const auto found = ptx::load_shared<ptx::Vec16>(buffer + row * kStorePitch + thread % 8 * 16);
    device::Chunk<device::BFloat16> chunk{};
    if (position[i] >= 0) chunk = {{found.x, found.y, found.z, found.w}};
    device::store_chunk<device::BFloat16, kWide>(
        p.out + (token + row) * p.stride_out + work.head * p.stride_out_head + column, chunk);
  }
}

template <uint32_t kWidth, bool kWide>
LC_DEVICE void multiply(const MlaQueryParams& p, uint32_t base, const Work& work) {
  constexpr uint32_t kStores = (kWidth + 15) / 16;  // of a thread for each chunk
  constexpr uint32_t kTokenStep = kWidth * kStageBytes / 16, kRowsStep = kWarpgroupRows * kStageBytes / 16;
  device::Pipeline weights = weights_of(p, base), tokens = tokens_of(p, base);
  const uint64_t a = device::descriptor_of(base) + ptx::warp_index() / 4 * kRowsStep;
  const uint64_t b = device::descriptor_of(base + p.smem.tokens);
  for (uint32_t token = 0; token < p.tokens; token += kWidth) {
    int32_t position[kStores] = {};  // of the tokens that the thread stores, read ahead
    LC_UNROLL
    for (uint32_t i = 0; i < kStores; ++i) {
      const uint32_t row = token + ptx::thread_index() % 128 / 8 + 16 * i;
      if (row < p.tokens) position[i] = ptx::load_global(p.position + row);
    }
    float sum[kWidth / 2] = {};
    for (uint32_t column = 0; column < p.nope; column += kStageColumns) {
      const uint64_t weight_stage = a + weights.stage * p.warpgroups * kRowsStep;
      const uint64_t token_stage = b + tokens.stage * kTokenStep;
      float acc[kWidth / 2];
      weights.wait_full();  // both precede wgmma_fence, which orders operand reads after them
      tokens.wait_full();
      ptx::wgmma_fence();
      LC_UNROLL
      for (uint32_t k = 0; k < kStageBytes; k += 32)
        ptx::wgmma_bf16<kWidth>(acc, weight_stage + k / 16, token_stage + k / 16, k > 0);
      ptx::wgmma_commit();
      device::add_products<0>(acc, sum);
      device::arrive_warp(tokens.empty());
      if (!p.resident) device::arrive_warp(weights.empty());
      tokens.advance();
      weights.advance();
    }
    if (p.resident) weights.phase = 0;  // the ring is at its start, and every stage stays full
    store<kWidth, kWide>(p, base, work, token, position, sum);
  }
}

// The first warpgroups multiply; a warp behind them loads, or several copy. kWide: everything lies on 16 bytes, and
// TMA reads the operands.
template <uint32_t kWidth, bool kWide>
LC_KERNEL LC_LAUNCH_BOUNDS(128 * kMostWarpgroups + 32 * (kWide ? 1 : kCopyWarps), 1)
    mla_query_kernel(LC_GRID_CONSTANT MlaQueryParams p) {
  const uint32_t base = ptx::dynamic_smem_base(), consumers = 4 * p.warpgroups;
  if (ptx::thread_index() == 0) {
    constexpr uint32_t kProducers = kWide ? 1 : kCopyWarps;
    device::init_pipeline(base + p.smem.weight_barriers, p.weight_stages, kProducers, consumers);
    device::init_pipeline(base + p.smem.token_barriers, p.token_stages, kProducers, consumers);
    ptx::fence_mbarrier_init();
  }
  ptx::sync_threads();
  const Work work = work_of(p);
  if (ptx::warp_index() < consumers) {
    prefetch_weights(p, work);
    ptx::grid_dependency_wait();  // before anything is read or stored
    turn_rest<kWide>(p, work);
    multiply<kWidth, kWide>(p, base, work);
  } else if constexpr (kWide) {
    if (ptx::elect_one()) produce<kWidth, kWide>(p, base, work);
    ptx::warp_sync();
  } else {
    produce<kWidth, kWide>(p, base, work);
  }
}

}  // namespace longcat_ops::mla_query
