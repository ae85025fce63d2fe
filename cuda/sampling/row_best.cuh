// The largest logit of a row and the lowest id that has it, by all threads of a cluster.
#pragma once

#include "device/vector_io.cuh"

namespace longcat_ops::sampling {

// The threads that share a row: all of a cluster of `blocks` blocks.
struct Team {
  uint32_t blocks, threads;  // of the cluster, of each block
  uint32_t rank, thread;     // of this block, of this thread in it
};

LC_DEVICE Team team_of(uint32_t blocks, uint32_t threads) {
  return {blocks, threads, ptx::block_index() % blocks, ptx::thread_index()};
}

constexpr uint32_t kNoToken = 0xffffffff;
constexpr uint32_t kMinusInfinity = 0xff800000;  // of a float

// Of the same order as its logit; 0 is below every logit, and a NaN above.
struct Best {
  uint32_t key;
  uint32_t id;  // kNoToken: none is above minus infinity
};

constexpr uint32_t kNanKey = 0xffffffff, kInfinityKey = 0xff800000, kMinusInfinityKey = 0x007fffff;

LC_DEVICE uint32_t key_of(float value) {
  const uint32_t bits = device::float_bits(ptx::add_rn(value, 0.0f));  // -0 becomes 0
  return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}
LC_DEVICE float value_of(uint32_t key) { return device::bits_float(key & 0x80000000 ? key & 0x7fffffff : ~key); }
LC_DEVICE bool is_finite(const Best& best) { return best.key > kMinusInfinityKey && best.key < kInfinityKey; }

LC_DEVICE Best best_of_warp(Best own) {
  const uint32_t key = ptx::redux_max(own.key);
  return {key, ptx::redux_min(own.key == key ? own.id : kNoToken)};
}

// Of the elements that this thread takes, in increasing order of ids: up to 3 before 16 bytes, every `stride`-th 16
// bytes, up to 3 behind them.
LC_DEVICE Best best_of_thread(const Team& team, const float* x, uint32_t width) {
  constexpr uint32_t kLoads = 4;  // in flight
  float top = device::bits_float(kMinusInfinity);
  uint32_t id = kNoToken;
  bool odd = false;
  const auto take = [&](float value, uint32_t at) {
    odd |= value != value;
    if (!(value > top)) return;
    top = value;
    id = at;
  };
  const uint32_t place = team.rank * team.threads + team.thread, stride = team.blocks * team.threads;
  const uint32_t before = static_cast<uint32_t>(0 - reinterpret_cast<uintptr_t>(x) / sizeof(float)) % 4;
  const uint32_t head = before < width ? before : width, vectors = (width - head) / 4, tail = head + 4 * vectors;
  if (place < head) take(ptx::load_global(x + place), place);
  const auto* parts = reinterpret_cast<const ptx::Vec16*>(x + head);
  for (uint32_t first = place; first < vectors; first += kLoads * stride) {
    ptx::Vec16 part[kLoads];
    LC_UNROLL
    for (uint32_t i = 0; i < kLoads; ++i) {
      const bool inside = first + i * stride < vectors;
      part[i] = inside ? ptx::load_global(parts + first + i * stride)
                       : ptx::Vec16{kMinusInfinity, kMinusInfinity, kMinusInfinity, kMinusInfinity};
    }
    LC_UNROLL
    for (uint32_t i = 0; i < kLoads; ++i) {
      const uint32_t at = head + 4 * (first + i * stride);
      take(device::bits_float(part[i].x), at);
      take(device::bits_float(part[i].y), at + 1);
      take(device::bits_float(part[i].z), at + 2);
      take(device::bits_float(part[i].w), at + 3);
    }
  }
  if (place < width - tail) take(ptx::load_global(x + tail + place), tail + place);
  return {odd ? kNanKey : key_of(top), id};
}

// A place for each warp, and one that other blocks read.
constexpr uint32_t kMaxTeamWarps = 32;
constexpr uint32_t kBestScratchBytes = 8 * (kMaxTeamWarps + 1);

// The same in every thread of the cluster. `scratch`: shared memory, in use until the cluster's next barrier. A block
// stays until all others have passed another barrier of the cluster.
LC_DEVICE Best best_of_team(const Team& team, Best own, uint32_t scratch) {
  const uint32_t lane = ptx::lane_index(), warps = team.threads / 32, shared = scratch + 8 * kMaxTeamWarps;
  const auto best = [](ptx::Vec8 words) { return Best{words.x, words.y}; };
  own = best_of_warp(own);
  if (lane == 0) ptx::store_shared(scratch + 8 * ptx::warp_index(), ptx::Vec8{own.key, own.id});
  ptx::sync_threads();
  own = best_of_warp(lane < warps ? best(ptx::load_shared<ptx::Vec8>(scratch + 8 * lane)) : Best{0, kNoToken});
  if (team.blocks == 1) return own;
  if (team.thread == 0) ptx::store_shared(shared, ptx::Vec8{own.key, own.id});
  ptx::cluster_sync();
  own = {0, kNoToken};
  if (lane < team.blocks) own = best(ptx::load_shared_cluster<ptx::Vec8>(ptx::cluster_address(shared, lane)));
  return best_of_warp(own);
}

}  // namespace longcat_ops::sampling
