// A rank's view of the symmetric memory: one region per rank, of one size, mapped at every rank, and one multicast
// address for all of them. The first 64 KB of a region are for control: nothing in them is ever reset.
#pragma once

#include <cstdint>

#include "comm/partition.h"
#include "longcat_ops.h"
#include "ptx/ptx.cuh"

namespace longcat_ops::comm {

constexpr uint32_t kMaxChannels = LC_COMM_MAX_CHANNELS, kMaxBlocks = LC_COMM_MAX_BLOCKS, kMaxThreads = 1024;
static_assert(kMaxRanks == LC_COMM_MAX_RANKS);

struct RankView {
  uint8_t* memory[kMaxRanks];  // of each rank, as mapped here
  uint8_t* multicast;          // of all ranks at once; null without NVLS
  lc_comm_record* record;      // in host memory that is mapped here
  uint64_t timeout_ns;         // 0: waits never end
  uint32_t rank, ranks;
  uint32_t channel;  // collectives of different channels may run at the same time
  uint32_t op;       // for the record
};

// The control region: a cell of 256 bytes per channel and block, then two words of the whole rank. What others write
// into a cell lies 128 bytes from what this rank alone writes.
constexpr uint32_t kCellBytes = 256;
constexpr uint32_t kInbox = 0;             // of a cell: arrivals of all ranks by multicast
constexpr uint32_t kSlots = 32;            // [rank] barriers at which that rank has arrived here by a store
constexpr uint32_t kMulticastEpoch = 128;  // barriers that this rank has passed, by kind
constexpr uint32_t kPeerEpoch = 132;
constexpr uint32_t kLineEpoch = 136;  // low-latency calls
constexpr uint32_t kArrival = 140;    // the last barrier by multicast at which this rank has arrived
constexpr uint32_t kAbort = kMaxChannels * kMaxBlocks * kCellBytes;  // 1 + the rank that gave up; 0: none has
constexpr uint32_t kClaim = kAbort + 128;                            // who writes the record
static_assert(kClaim + 4 <= LC_COMM_CONTROL_BYTES);

LC_DEVICE uint32_t cell_of(const RankView& v) { return (v.channel * kMaxBlocks + ptx::block_index()) * kCellBytes; }

LC_DEVICE uint32_t* word(const RankView& v, uint32_t rank, uint32_t at) {
  return reinterpret_cast<uint32_t*>(v.memory[rank] + at);
}

// Where a collective was when it gave up.
enum class Stage : uint32_t {
  kEntry = LC_COMM_ENTRY,
  kExit = LC_COMM_EXIT,
  kLines = LC_COMM_LINES,
  kRows = LC_COMM_ROWS,
  kCounts = LC_COMM_COUNTS,
  kDispatch = LC_COMM_DISPATCH,
  kCombine = LC_COMM_COMBINE
};

// Why it gave up.
enum class Status : uint32_t {
  kNone = 0,
  kTimeout = LC_COMM_TIMEOUT,
  kPeerAborted = LC_COMM_PEER_ABORTED,
  kHostAborted = LC_COMM_HOST_ABORTED,
  kBadRows = LC_COMM_BAD_ROWS,
};

struct Failure {
  Status status;
  Stage stage;
  uint32_t expected, seen;  // epochs, or rows
  uint32_t missing;         // bit r: rank r is behind, or has aborted
};

LC_DEVICE bool is_aborted(const RankView& v) { return ptx::load_relaxed_sys(word(v, v.rank, kAbort)) != 0; }

// One thread. Tells all ranks to give up, then the host why: the first failure of a rank is the one that it reports.
// A rank claims its record before it tells anyone. So an abort word always names a rank whose own record has the cause,
// and no block of that rank can report that its own rank has aborted. Who comes second returns when the own word is
// there, so that no later kernel of this rank takes the failed call for a good one. Nothing traps: the context lives
// on, and the communicator is of no further use.
LC_DEVICE void give_up(const RankView& v, const Failure& failure) {
  if (ptx::atomic_add_acq_rel_gpu(word(v, v.rank, kClaim), 1) != 0) {
    while (!is_aborted(v)) ptx::spin_pause();
    return;
  }
  uint32_t missing = failure.missing;
  if (failure.status == Status::kPeerAborted) {
    missing = 1u << (ptx::load_relaxed_sys(word(v, v.rank, kAbort)) - 1);
  } else {
    LC_NO_UNROLL
    for (uint32_t i = 0; i < v.ranks; ++i) ptx::store_relaxed_sys(word(v, (v.rank + i) % v.ranks, kAbort), 1 + v.rank);
  }
  ptx::store_relaxed_sys(&v.record->op, v.op);
  ptx::store_relaxed_sys(&v.record->channel, v.channel);
  ptx::store_relaxed_sys(&v.record->block, ptx::block_index());
  ptx::store_relaxed_sys(&v.record->stage, static_cast<uint32_t>(failure.stage));
  ptx::store_relaxed_sys(&v.record->expected, failure.expected);
  ptx::store_relaxed_sys(&v.record->seen, failure.seen);
  ptx::store_relaxed_sys(&v.record->missing, missing);
  ptx::store_release_sys(&v.record->status, static_cast<uint32_t>(failure.status));
}

// How long a thread has waited, and what ends its wait.
class Patience {
 public:
  // polls_per_look: in vain, until host memory and the timer are looked at. More where many threads wait.
  LC_DEVICE Patience(const RankView& view, uint32_t polls_per_look) : v(view), period(polls_per_look) {}

  // After each poll in vain. The abort word is here, so it is looked at every time.
  LC_DEVICE Status after_poll() {
    if (is_aborted(v)) return Status::kPeerAborted;
    if (++polls % period != 0) return Status::kNone;
    if (ptx::load_relaxed_sys(&v.record->host_abort) != 0) return Status::kHostAborted;
    if (v.timeout_ns == 0) return Status::kNone;
    const uint64_t now = ptx::globaltimer_ns();
    if (start == 0) start = now;
    return now - start > v.timeout_ns ? Status::kTimeout : Status::kNone;
  }

 private:
  const RankView& v;
  uint64_t start = 0;
  uint32_t period, polls = 0;
};

// Where one thread of a block waits, and where all do. In the emulator a poll takes as long as others let it.
#ifdef LC_EMULATE
constexpr uint32_t kFewPolls = 1, kManyPolls = 1;
#else
constexpr uint32_t kFewPolls = 64, kManyPolls = 4096;
#endif

}  // namespace longcat_ops::comm
