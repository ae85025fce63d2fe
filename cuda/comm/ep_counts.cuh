// ep_counts: every rank tells all others where the rows of each expert begin in its plan, and from what all have told
// knows where each row goes. It is the only barrier of a call of expert parallelism.
//
// Floor: 8 (N + 1) bytes to each other rank and as many from it, N experts: 4104 bytes for 512. Read once and written
// once here: 4 (N + 1) bytes of the plan, 12 N of the table.
//
// A line is 8 bytes, {offset, epoch}, which arrive together. Lines have room for two calls in turn: each rank sends all
// of them in every call and hears from all before it ends, so nobody can still read what the next but one overwrites.
// A rank that has heard from another may also write to that one's buffer: that rank sent its lines after the kernels
// that read the buffer's last rows had ended.
#pragma once

#include "comm/ep_view.cuh"
#include "device/block_scan.cuh"

namespace longcat_ops::comm {

struct EpCountsParams {
  ExpertView view;
  const int32_t* plan_offsets;  // [experts + 1]
  int32_t* offsets;             // [local + 1] of the received rows
  uint64_t choices;             // of this rank's tokens
  uint64_t row_bytes;           // of a row on its way
  uint32_t threads;             // of the block; at least one per expert
};

// Shared memory, from the start.
struct CountsLayout {
  static constexpr uint32_t kWarpWords = 4 * kWarpLanes;  // bytes of a word per warp

  uint32_t aborted;             // a word
  uint32_t unheard, bad, scan;  // [kWarpWords]
  uint32_t begin;               // [experts + 1] where each expert's rows begin, on all ranks together
  uint32_t offsets;             // [ranks][experts + 1]
  uint32_t bytes;

  static constexpr CountsLayout of(uint32_t ranks, uint32_t experts) {
    constexpr uint32_t kVotes = 16, kBegin = kVotes + 3 * kWarpWords;
    const uint32_t row = 4 * (experts + 1);
    return {0, kVotes, kVotes + kWarpWords, kVotes + 2 * kWarpWords, kBegin, kBegin + row, kBegin + (1 + ranks) * row};
  }
};

// Whether any thread of the block says so; all of them ask. votes: a word per warp, for this question alone.
LC_DEVICE bool any_of_block(bool says, uint32_t votes, uint32_t warps) {
  const bool any = ptx::any(says);
  const uint32_t lane = ptx::lane_index();
  if (lane == 0) ptx::store_shared(votes + 4 * ptx::warp_index(), static_cast<uint32_t>(any));
  ptx::sync_threads();
  return ptx::any(lane < warps && ptx::load_shared<uint32_t>(votes + 4 * lane) != 0);
}

// Line i of a rank, as it lies here.
LC_DEVICE const uint64_t* line_of(const ExpertView& e, uint64_t lines, uint32_t source, uint32_t i) {
  const uint64_t at = lines + kLlLineBytes * (source * (e.experts + 1) + i);
  return reinterpret_cast<const uint64_t*>(e.ranks.memory[e.ranks.rank] + at);
}

// Waits for line i of all ranks, whose loads are in flight together. False: given up.
LC_DEVICE bool receive_lines(const ExpertView& e, uint64_t lines, uint32_t i, uint32_t epoch,
                             uint64_t (&got)[kMaxRanks]) {
  const RankView& v = e.ranks;
  Patience patience(v, kManyPolls);
  for (;;) {
    uint32_t missing = 0;
    LC_UNROLL
    for (uint32_t source = 0; source < kMaxRanks; ++source)
      if (source < v.ranks) got[source] = ptx::load_relaxed_sys(line_of(e, lines, source, i));
    LC_UNROLL
    for (uint32_t source = 0; source < kMaxRanks; ++source)
      if (source < v.ranks) missing |= static_cast<uint32_t>(got[source] >> 32 != epoch) << source;
    if (missing == 0) return true;
    if (const Status status = patience.after_poll(); status != Status::kNone) {
      const uint64_t* first = line_of(e, lines, ptx::popcount((missing & -missing) - 1), i);
      give_up(v, {status, Stage::kCounts, epoch, static_cast<uint32_t>(ptx::load_relaxed_sys(first) >> 32), missing});
      return false;
    }
    ptx::spin_pause();
  }
}

LC_KERNEL LC_LAUNCH_BOUNDS(kMaxExperts, 1) ep_counts_kernel(LC_GRID_CONSTANT EpCountsParams p) {
  const ExpertView& e = p.view;
  const RankView& v = e.ranks;
  const CountsLayout at = CountsLayout::of(v.ranks, e.experts);
  const uint32_t base = ptx::dynamic_smem_base(), thread = ptx::thread_index(), row = e.experts + 1;
  const auto load = [&](uint32_t array, uint32_t i) { return ptx::load_shared<uint32_t>(base + array + 4 * i); };
  const uint32_t warps = p.threads / kWarpLanes;

  // A rank that has given up sends nothing, so that a stream of calls ends early. All loads are in flight together.
  const uint32_t own = thread < row ? static_cast<uint32_t>(ptx::load_global(p.plan_offsets + thread)) : 0;
  const uint32_t epoch = epoch_after(ptx::load_global(e.head + kHeadEpoch));
  if (thread == 0) {
    const bool aborted = is_aborted(v);
    ptx::store_shared(base + at.aborted, static_cast<uint32_t>(aborted));
    if (aborted) give_up(v, {Status::kPeerAborted, Stage::kCounts, epoch, 0, 0});
  }
  ptx::sync_threads();
  if (load(at.aborted, 0) != 0) return;

  // Exchange.
  const uint64_t lines = e.lines + kLlLineBytes * (epoch % kLlParities * v.ranks * row);
  LC_NO_UNROLL
  for (uint32_t i = thread; i < row; i += p.threads) {
    const ptx::Vec8 line{i == thread ? own : static_cast<uint32_t>(ptx::load_global(p.plan_offsets + i)), epoch};
    LC_NO_UNROLL
    for (uint32_t rank = 0; rank < v.ranks; ++rank)
      ptx::store_relaxed_sys(reinterpret_cast<ptx::Vec8*>(v.memory[rank] + lines) + v.rank * row + i, line);
  }
  bool here = true;
  LC_NO_UNROLL
  for (uint32_t i = thread; i < row && here; i += p.threads) {
    uint64_t got[kMaxRanks];
    here = receive_lines(e, lines, i, epoch, got);
    LC_UNROLL
    for (uint32_t source = 0; source < kMaxRanks; ++source)
      if (source < v.ranks && here)
        ptx::store_shared(base + at.offsets + 4 * (source * row + i), static_cast<uint32_t>(got[source]));
  }
  // NOTE: a line brings its offset along; but later kernels overwrite what its rank has read. So one thread per rank
  // acquires a line that it has seen, and uses it, or ptxas drops the load. A fence of the whole system would wait for
  // this rank's own lines to arrive.
  if (thread < v.ranks && here)
    ptx::store_shared(base + at.offsets + 4 * (thread * row + thread),
                      static_cast<uint32_t>(ptx::load_acquire_sys(line_of(e, lines, thread, thread))));
  if (any_of_block(!here, base + at.unheard, warps)) return;

  // Thread g: rows of expert g from all ranks, and from those below this one.
  const auto offset = [&](uint32_t source, uint32_t g) { return load(at.offsets, source * row + g); };
  uint32_t total = 0, before = 0;
  bool bad = false;
  if (thread < e.experts) {
    LC_NO_UNROLL
    for (uint32_t source = 0; source < v.ranks; ++source) {
      const uint32_t first = offset(source, thread), end = offset(source, thread + 1);
      // Offsets that rise from 0 to what may come back: then no sum below overflows.
      if (first > end || end > e.back || (thread == 0 && first != 0)) {
        bad = true;
        give_up(v, {Status::kBadRows, Stage::kRows, e.back, end, 1u << source});
      }
      total += end - first;
      before += source < v.rank ? end - first : 0;
    }
  }
  const device::Scan begin = device::scan_block(total, warps, base + at.scan);
  if (thread < e.experts) ptx::store_shared(base + at.begin + 4 * thread, begin.before);
  if (thread == 0) ptx::store_shared(base + at.begin + 4 * e.experts, begin.total);
  ptx::sync_threads();
  const auto first_of_rank = [&](uint32_t rank) { return load(at.begin, rank * e.local); };
  if (thread < v.ranks) {
    const uint32_t rows = first_of_rank(thread + 1) - first_of_rank(thread);
    if (rows > e.received) {
      bad = true;
      give_up(v, {Status::kBadRows, Stage::kRows, e.received, rows, 1u << thread});
    }
  }
  if (any_of_block(bad, base + at.bad, warps)) return;

  // Where this rank's rows go, and where the rows that it receives come from.
  const ExpertTable table(e);
  if (thread < e.experts) {
    const uint32_t owner = thread / e.local, first = begin.before - first_of_rank(owner);
    ptx::store_global(table.send_shift + thread, static_cast<int32_t>(first + before - offset(v.rank, thread)));
    if (owner == v.rank) {
      const uint32_t expert = thread - owner * e.local;
      ptx::store_global(p.offsets + expert, static_cast<int32_t>(first));
      uint32_t here = first;
      LC_NO_UNROLL
      for (uint32_t source = 0; source < v.ranks; ++source) {
        const uint32_t run = expert * v.ranks + source, there = offset(source, thread);
        ptx::store_global(table.first + run, here);
        ptx::store_global(table.return_shift + run, static_cast<int32_t>(there - here));
        here += offset(source, thread + 1) - there;
      }
    }
  }
  const uint32_t sent = offset(v.rank, e.experts);
  const uint32_t kept = offset(v.rank, (v.rank + 1) * e.local) - offset(v.rank, v.rank * e.local);
  if (thread == 0) {
    const uint32_t received = first_of_rank(v.rank + 1) - first_of_rank(v.rank);
    ptx::store_global(p.offsets + e.local, static_cast<int32_t>(received));
    ptx::store_global(table.first + e.experts, received);
    ptx::store_global(e.call + kCallRemote, received - kept);
    ptx::store_global(e.call + kCallEpoch, epoch);
    ptx::store_global(e.head + kHeadEpoch, epoch);
  }
  // A counter each: one thread would wait for four loads in turn.
  const uint64_t more = thread == kRowsSent         ? sent
                        : thread == kRowsToOthers   ? sent - kept
                        : thread == kChoicesNotSent ? p.choices - sent
                                                    : (sent - kept) * p.row_bytes;
  if (thread <= kBytesToOthers) count(e, static_cast<ExpertCounter>(thread), more);
}

}  // namespace longcat_ops::comm
