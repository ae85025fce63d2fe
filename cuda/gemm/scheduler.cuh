// The tile scheduler: one warp of each block walks over the groups, skips the empty ones and puts the block's tiles
// into a short queue that all other roles read. So the block needs no memory per group, any index vector is legal, and
// the first tile is known after one load from global memory.
#pragma once

#include "device/pipeline.cuh"
#include "gemm/params.cuh"

namespace longcat_ops::moe_gemm {

struct TileQueue {
  uint32_t slots;
  device::Pipeline ring;

  LC_DEVICE TileQueue(const SmemLayout& smem, uint32_t base)
      : slots(base + smem.tiles), ring(base + smem.barriers + ring_offset(smem, Ring::kTiles), kQueueTiles) {}

  LC_DEVICE uint32_t slot() const { return slots + static_cast<uint32_t>(sizeof(TileSlot)) * ring.stage; }

  // Called by one thread.
  LC_DEVICE void push(const Tile& tile) {
    ring.wait_empty();
    ptx::store_shared(slot(), TileSlot::pack(tile));
    ptx::mbarrier_arrive(ring.full());
    ring.advance();
  }

  // Called by a whole warp, or by one thread on its behalf.
  template <bool kWarp>
  LC_DEVICE Tile pop() {
    ring.wait_full();
    const TileSlot tile = ptx::load_shared<TileSlot>(slot());
    if constexpr (kWarp) {
      device::arrive_warp(ring.empty());
    } else {
      ptx::mbarrier_arrive(ring.empty());
    }
    ring.advance();
    return tile.unpack();
  }
};

// Walks call emit(group, first row, rows) for each group that has rows. A batch of loads is in flight at once: an empty
// group costs one ballot bit.
constexpr uint32_t kBatch = 8;

// Adds a value of the index vector to a lane's digest.
LC_DEVICE void mix(uint32_t& digest, int32_t value) { digest = (digest ^ static_cast<uint32_t>(value)) * 0x9e3779b1u; }

LC_DEVICE int32_t clamp_row(int32_t row, uint32_t rows) {
  return row < 0 ? 0 : static_cast<uint32_t>(row) > rows ? static_cast<int32_t>(rows) : row;
}

// Returns a digest of what this lane read of the index vector.
// NOTE: relaxed loads read from L2. Under counts_ready nothing has invalidated this SM's L1, which may hold old values.
template <class Emit>
LC_DEVICE uint32_t walk_groups(const GroupedRows& rows, Emit emit) {
  const bool masked = rows.layout == RowLayout::kMasked;
  uint32_t digest = 0;
  for (uint32_t base = 0; base < rows.groups; base += 32 * kBatch) {
    int32_t start[kBatch], count[kBatch];
    LC_UNROLL
    for (uint32_t i = 0; i < kBatch; ++i) {
      const uint32_t group = base + 32 * i + ptx::lane_index();
      const bool inside = group < rows.groups;
      start[i] = inside && !masked ? ptx::load_relaxed_gpu(rows.index + group) : 0;
      count[i] = inside ? ptx::load_relaxed_gpu(rows.index + group + !masked) : 0;
    }
    LC_UNROLL
    for (uint32_t i = 0; i < kBatch; ++i) {
      mix(digest, start[i]);
      mix(digest, count[i]);
      start[i] = clamp_row(start[i], rows.rows);
      count[i] = clamp_row(count[i], rows.rows) - start[i];
      uint32_t left = ptx::ballot(count[i] > 0);
      for (uint32_t lane = 0; left != 0; ++lane, left >>= 1) {
        if ((left & 1) == 0) continue;
        const uint32_t first = ptx::shuffle(start[i], lane), many = ptx::shuffle(count[i], lane);
        emit(base + 32 * i + lane, first, many);
      }
    }
  }
  return digest;
}

// The same for each run of equal, valid indices.
template <class Emit>
LC_DEVICE void walk_runs(const GroupedRows& rows, Emit emit) {
  constexpr int32_t kNone = -1;
  int32_t group = kNone;  // of the open run
  uint32_t first = 0;
  for (uint32_t base = 0; base < rows.rows; base += 32 * kBatch) {
    int32_t index[kBatch];
    LC_UNROLL
    for (uint32_t i = 0; i < kBatch; ++i) {
      const uint32_t row = base + 32 * i + ptx::lane_index();
      index[i] = row < rows.rows ? ptx::load_global(rows.index + row) : kNone;
    }
    LC_UNROLL
    for (uint32_t i = 0; i < kBatch; ++i) {
      if (static_cast<uint32_t>(index[i]) >= rows.groups) index[i] = kNone;
      const int32_t before = ptx::shuffle_up(index[i], 1);
      uint32_t left = ptx::ballot(index[i] != (ptx::lane_index() == 0 ? group : before));
      for (uint32_t lane = 0; left != 0; ++lane, left >>= 1) {
        if ((left & 1) == 0) continue;
        const uint32_t row = base + 32 * i + lane;
        if (group != kNone) emit(group, first, row - first);
        group = ptx::shuffle(index[i], lane);
        first = row;
      }
    }
  }
  if (group != kNone) emit(group, first, rows.rows - first);
}

// Rows were read early on the caller's promise that they were final. Reads them again: whether they still make this
// tile.
LC_DEVICE bool is_current(const GroupedRows& rows, const Tile& tile, uint32_t most) {
  const uint32_t start = clamp_row(ptx::load_relaxed_gpu(rows.index + tile.group), rows.rows);
  const uint32_t end = clamp_row(ptx::load_relaxed_gpu(rows.index + tile.group + 1), rows.rows);
  if (tile.row < start || tile.row >= end || (tile.row - start) % most != 0) return false;
  return tile.tokens == (end - tile.row < most ? end - tile.row : most);
}

// NOTE: the blocks of a cluster wait for each other, so all must read the same rows; they do not read early.
template <Cluster kCluster>
LC_DEVICE bool reads_early(const MoeGemmParams& p) {
  return p.counts_ready && (kCluster == Cluster::kNone || (kCluster == Cluster::kSplit && p.split == 1));
}

// Called once the kernel ahead has ended: whether the tile's results are NaN.
template <Cluster kCluster>
LC_DEVICE bool is_refused(const MoeGemmParams& p, const Tile& tile) {
  const bool early = reads_early<kCluster>(p) && p.rows.layout == RowLayout::kOffset;
  return tile.refused || (early && !is_current(p.rows, tile, p.smem.max_tokens));
}

// Tiles are dealt out in turn: a block, or cluster, takes the tile of its own index and then every step-th. Tiles of
// one weight tile are neighbours, so that all blocks but one find it in L2. The blocks of a pair take two weight tiles
// for the same tokens; with an odd number of weight tiles, the last one's neighbour has no rows.
template <Cluster kCluster>
LC_DEVICE void schedule_tiles(const MoeGemmParams& p, uint32_t base) {
  constexpr bool kPairs = kCluster == Cluster::kPairs;
  const bool early = reads_early<kCluster>(p);
  if (!early) ptx::grid_dependency_wait();
  TileQueue queue(p.smem, base);
  const uint32_t blocks = kPairs ? 2 : 1, rank = kPairs ? ptx::block_index() % 2 : 0;
  const uint32_t cluster = kPairs ? 2 : kCluster == Cluster::kSplit ? p.split : 1;
  const uint32_t step = ptx::grid_size() / cluster;
  const uint32_t rows = blocks * p.smem.tile_rows, steps = (p.n + rows - 1) / rows, most = p.smem.max_tokens;
  uint32_t next = ptx::block_index() / cluster;  // counted from the start of the current group
  bool refused = false;
  const auto emit = [&](uint32_t group, uint32_t row, uint32_t count) {
    const uint32_t chunks = (count + most - 1) / most, tiles = chunks * steps;
    for (; next < tiles; next += step) {
      const uint32_t chunk = next % chunks, left = count - chunk * most, weight_tile = next / chunks * blocks + rank;
      if (ptx::lane_index() == 0)
        queue.push({group, row + chunk * most, left < most ? left : most, weight_tile, chunks > 1, refused});
    }
    next -= tiles;
  };
  switch (p.rows.layout) {
    case RowLayout::kDense: emit(0, 0, p.rows.rows); break;
    case RowLayout::kOffset:
    case RowLayout::kMasked: {
      const uint32_t digest = walk_groups(p.rows, emit);
      if (!early) break;
      // If rows changed after the early read, emit all tiles again, refused: no output may stay unwritten.
      ptx::grid_dependency_wait();
      refused = true;
      next = ptx::block_index() / cluster;
      if (ptx::any(digest != walk_groups(p.rows, [](uint32_t, uint32_t, uint32_t) {}))) walk_groups(p.rows, emit);
      break;
    }
    case RowLayout::kContiguous: walk_runs(p.rows, emit); break;
  }
  if (ptx::lane_index() == 0) queue.push({0, 0, 0, 0});
}

}  // namespace longcat_ops::moe_gemm
