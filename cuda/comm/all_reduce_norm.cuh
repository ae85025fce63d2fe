// All-reduce, residual and RMS norm in one kernel, with FP8 codes of the result if wanted: h = sum + residual, rounded
// as x is; y = rms_norm(h); q, s = y quantised 1x128. The bits of y, q and s are those of rms_norm_quant_fp8.
//
// Rows are shared out: each rank owns equal shares, and each block a part of every share. Two barriers: the owner sums
// a row over all ranks, adds the residual and sends h to all; then every rank normalises every row for itself, which
// moves nothing over the links. Lines: every rank sums all rows from lines of data and flag, without a barrier. h is
// kept in residual_out, where the thread that wrote a chunk reads it again.
#pragma once

#include "comm/low_latency.cuh"
#include "device/fp8_scale.cuh"
#include "device/norm_row.cuh"
#include "device/warp_reduce.cuh"

namespace longcat_ops::comm {

struct NormParams {
  RankView view;
  const void* input;     // [rows, width]; null: in the symmetric memory, for two barriers
  const void* residual;  // [rows, width], as all below of x's dtype and without gaps
  const float* weight;   // [width]
  void* residual_out;    // [rows, width]
  void* y;               // [rows, width] or null
  uint8_t* q;            // [rows, width] or null
  float* s;              // [rows, ceil(width / 128)]
  int64_t stride_s_row, stride_s_column;
  uint64_t payload;  // where x lies in the symmetric memory, and then h; or the lines
  uint32_t max_bytes;
  uint32_t rows, chunks;  // chunks of 8 of a row
  uint32_t threads;       // of a block
  float width, eps;
};

// Rows [begin, end) of `rank` that `block` takes. Blocks take turns at being the first, so that a row a rank occupies
// all of them.
LC_DEVICE Range rows_of_block(const NormParams& p, uint32_t rank, uint32_t block) {
  const Range share = shard_of(p.rows, static_cast<int>(p.view.ranks), static_cast<int>(rank));
  const auto blocks = static_cast<int>(ptx::grid_size());
  const Range part = shard_of(share.size(), blocks, static_cast<int>((block + rank) % ptx::grid_size()));
  return {share.begin + part.begin, share.begin + part.end};
}

// The threads that normalise a row: their number decides the bits, so a block has as many teams as fit.
struct Team {
  uint32_t threads, count, index, thread;

  LC_DEVICE explicit Team(const NormParams& p) : threads(device::norm_threads(p.chunks)) {
    constexpr uint32_t kMaxTeams = 8;
    count = p.threads / threads < kMaxTeams ? p.threads / threads : kMaxTeams;
    index = ptx::thread_index() / threads;
    thread = ptx::thread_index() % threads;
  }
  LC_DEVICE void sync() const { ptx::named_barrier_sync(1 + index, threads); }
};

constexpr uint32_t kNormSmemBytes = kBarrierBytes + 8 * device::kReduceScratchBytes;

// A block's rows, one a team at a time. row_at(k) is the k-th, or -1; make(row, chunk) gives a chunk of h.
template <class Element, class RowAt, class Make>
LC_DEVICE void norm_rows(const NormParams& p, RowAt row_at, Make make) {
  using namespace device;
  using Format = typename Element::Format;
  using Storage = typename Element::Storage;
  constexpr uint32_t kGroupChunks = 16;
  const Team team(p);
  if (team.index >= team.count) return;
  const uint32_t scratch = ptx::dynamic_smem_base() + kBarrierBytes + team.index * kReduceScratchBytes;
  const uint32_t trips = (p.chunks + team.threads - 1) / team.threads;
  LC_NO_UNROLL
  for (uint32_t k = team.index;; k += team.count) {
    const int64_t row = row_at(k);
    if (row < 0) return;
    auto* h = static_cast<Storage*>(p.residual_out) + row * p.chunks * kChunk;
    float sum = 0.0f, values[kChunk], weight[kChunk];
    LC_NO_UNROLL
    for (uint32_t chunk = team.thread; chunk < p.chunks; chunk += team.threads) {
      const Chunk<Format> made = make(row, chunk);
      store_chunk<Format, true>(h + kChunk * chunk, made);
      unpack(made, values);
      sum = ptx::add_rn(sum, sum_of_squares(values));
    }
    sum = reduce_warps(sum, Sum(), team.threads / 32, team.thread / 32, scratch, [&] { team.sync(); });
    const float inverse_rms = inverse_rms_of(sum, p.width, p.eps);
    // NOTE: every lane makes every trip, inside the row or not, because whole warps reduce over a group.
    LC_NO_UNROLL
    for (uint32_t trip = 0; trip < trips; ++trip) {
      const uint32_t chunk = team.thread + trip * team.threads;
      const bool inside = chunk < p.chunks;
      Chunk<Format> y{};  // 0 outside: no chunk's maximum
      if (inside) {
        load_floats<true>(p.weight + kChunk * chunk, weight);
        y = normalise(load_chunk<Format, true>(h + kChunk * chunk), inverse_rms, weight);
        if (p.y != nullptr)
          store_chunk<Format, true>(static_cast<Storage*>(p.y) + (row * p.chunks + chunk) * kChunk, y);
      }
      if (p.q == nullptr) continue;
      unpack(y, values);
      const Fp8Scale scale = make_fp8_scale(reduce_lanes<kGroupChunks>(max_abs_bits(values), Max()));
      if (!inside) continue;
      store_codes<true>(p.q + (row * p.chunks + chunk) * kChunk, quantise_chunk(values, scale));
      if (chunk % kGroupChunks == 0)
        ptx::store_global(p.s + row * p.stride_s_row + chunk / kGroupChunks * p.stride_s_column, scale.value);
    }
    team.sync();  // the scratch is free again
  }
}

// Packs of 16 bytes of both kinds of tensors are aligned: the launcher checks it.
template <class Element, class Switch, class Sync>
LC_KERNEL LC_LAUNCH_BOUNDS(kMaxThreads, 1) all_reduce_norm_kernel(LC_GRID_CONSTANT NormParams p) {
  using Storage = typename Element::Storage;
  const RankView& v = p.view;
  const uint32_t row_bytes = p.chunks * device::kChunk * sizeof(Storage);
  const LocalBytes<Storage> memory(v.memory[v.rank], 0);
  RankBarrier<Sync> barrier(v);
  const auto span_of = [&](uint32_t rank) {
    const Range rows = rows_of_block(p, rank, ptx::block_index());
    return Span::of(p.payload + row_bytes * rows.begin, p.payload + row_bytes * rows.end);
  };
  const Walk walk = Walk::in_block(p.threads);  // the spans are this block's alone

  const bool staged = p.input != nullptr;
  if (staged) {
    const LocalBytes<Storage> input(p.input, p.payload);
    LC_NO_UNROLL
    for (uint32_t rank = 0; rank < v.ranks; ++rank)
      stream_packs<2>(
          span_of(rank), walk, [&](uint64_t at) { return input.load(at); },
          [&](uint64_t at, ptx::Vec16 pack) { memory.store(at, pack); });
  }
  if (!barrier.wait(Stage::kEntry, staged)) return;

  const LocalBytes<Storage> residual(p.residual, p.payload);
  stream_packs<Switch::kPacks>(
      span_of(v.rank), walk, [&](uint64_t at) { return Switch::reduce(v, at); },
      [&](uint64_t at, ptx::Vec16 pack) { Switch::send(v, at, add_packs<Element>(pack, residual.load(at))); });
  if (!barrier.wait(Stage::kExit, true)) return;

  const auto row_at = [&](uint32_t k) -> int64_t {
    int64_t left = k;
    LC_NO_UNROLL
    for (uint32_t rank = 0; rank < v.ranks; ++rank) {
      const Range rows = rows_of_block(p, rank, ptx::block_index());
      if (left < rows.size()) return rows.begin + left;
      left -= rows.size();
    }
    return -1;
  };
  norm_rows<Element>(p, row_at, [&](int64_t row, uint32_t chunk) {
    const auto* h = memory.template place<const Storage>(p.payload);
    return device::load_chunk<typename Element::Format, true>(h + (row * p.chunks + chunk) * device::kChunk);
  });
  if (ptx::thread_index() == 0) barrier.save();
}

template <class Element, bool kMulticast>
LC_KERNEL LC_LAUNCH_BOUNDS(kMaxThreads, 1) low_latency_norm_kernel(LC_GRID_CONSTANT NormParams p) {
  using Format = typename Element::Format;
  using Storage = typename Element::Storage;
  constexpr uint32_t kChunkPacks = device::kChunk / Element::kWidth;
  const uint32_t row_packs = p.chunks * kChunkPacks;
  Lines lines(p.view, p.payload, p.max_bytes);
  lines.send<kMulticast>(LocalBytes<Storage>(p.input, 0), p.rows * row_packs * kPackBytes,
                         Walk::over_blocks(p.threads));
  const LocalBytes<Storage> residual(p.residual, 0);
  const auto row_at = [&](uint32_t k) -> int64_t {
    const int64_t row = ptx::block_index() + static_cast<int64_t>(ptx::grid_size()) * k;
    return row < p.rows ? row : -1;
  };
  norm_rows<Element>(p, row_at, [&](int64_t row, uint32_t chunk) {
    device::Chunk<Format> h{};
    LC_UNROLL
    for (uint32_t j = 0; j < kChunkPacks; ++j) {
      const auto i = static_cast<uint32_t>(row * row_packs + chunk * kChunkPacks + j);
      ptx::Vec16 pack{};
      lines.sum<Element>(i, pack);  // after a failure: anything, for the warps of a team must stay together
      pack = add_packs<Element>(pack, residual.load(static_cast<uint64_t>(kPackBytes) * i));
      h.words[4 * j] = pack.x;
      h.words[4 * j + 1] = pack.y;
      h.words[4 * j + 2] = pack.z;
      h.words[4 * j + 3] = pack.w;
    }
    return h;
  });
  if (ptx::thread_index() == 0) lines.save();
}

}  // namespace longcat_ops::comm
