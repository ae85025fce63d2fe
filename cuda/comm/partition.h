// Who works on which bytes of a collective. Plain C++: for kernels, launchers and tests. Nothing here depends on one
// rank's own sizes, so that all ranks agree.
#pragma once

#include <cstdint>

#include "common/constants.h"
#include "common/numeric.h"

namespace longcat_ops::comm {

constexpr int kMaxRanks = 8;         // of one NVLink domain
constexpr int64_t kPackBytes = 16;   // what one instruction moves
constexpr int64_t kLlDataBytes = 4;  // of a line of the low-latency form, which is as much data as flag
constexpr int64_t kLlLineBytes = 8;
constexpr int kLlParities = 2;  // slots take turns, so that a rank may be one step ahead

// The whole packs of a tensor, and the elements around them. Its address modulo 16 is the same on all ranks.
struct Packs {
  int64_t head;   // elements ahead of the first multiple of 16 bytes: the work of rank 0
  int64_t count;  // packs
  int64_t tail;   // elements behind the last pack: the work of rank 0, too
};

// address: of the first element, a multiple of element_bytes, which is 1, 2, 4 or 8.
constexpr Packs split_packs(uint64_t address, int64_t elements, int64_t element_bytes) {
  const int64_t past = static_cast<int64_t>(address % kPackBytes);
  const int64_t ahead = past == 0 ? 0 : (kPackBytes - past) / element_bytes;
  const int64_t head = ahead < elements ? ahead : elements, per_pack = kPackBytes / element_bytes;
  return {head, (elements - head) / per_pack, (elements - head) % per_pack};
}

// Neighbouring packs, rows or elements: [begin, end).
struct Range {
  int64_t begin, end;

  constexpr int64_t size() const { return end - begin; }
};

// What a rank reduces and stores to all, of `count` packs (or rows, where a norm follows). Shards have the same size,
// but for the last that is not empty.
constexpr int64_t shard_size(int64_t count, int ranks) { return ceil_div(count, ranks); }
constexpr Range shard_of(int64_t count, int ranks, int rank) {
  const int64_t shard = shard_size(count, ranks), begin = shard * rank, end = begin + shard;
  return {begin < count ? begin : count, end < count ? end : count};
}

// The packs of a thread: this one, then each that lies `pack_stride` further. A warp takes 32 neighbouring packs, and
// warps take turns over the blocks first, so a small message spreads over all blocks.
constexpr uint32_t first_pack(uint32_t block, uint32_t blocks, uint32_t warp, uint32_t lane) {
  return (block + blocks * warp) * kWarpLanes + lane;
}
constexpr uint32_t pack_stride(uint32_t blocks, uint32_t threads) { return blocks * threads; }

// Scratch of the low-latency form: parity, then sending rank, then lines. A store of 16 bytes writes two lines.
constexpr int64_t ll_slot_bytes(int64_t max_bytes) {
  return align_up(max_bytes, 2 * kLlDataBytes) / kLlDataBytes * kLlLineBytes;
}
constexpr int64_t ll_slot_offset(int parity, int from, int ranks, int64_t max_bytes) {
  return (static_cast<int64_t>(parity) * ranks + from) * ll_slot_bytes(max_bytes);
}
constexpr int64_t ll_scratch_bytes(int ranks, int64_t max_bytes) {
  return kLlParities * ranks * ll_slot_bytes(max_bytes);
}

}  // namespace longcat_ops::comm
