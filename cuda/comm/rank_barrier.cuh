// The barrier of a collective, for the blocks of one index on all ranks: none goes on before all have arrived.
// Epochs count barriers; they live in device memory, so a replayed graph continues where the last launch ended, and
// they wrap around.
#pragma once

#include "comm/rank_view.cuh"

namespace longcat_ops::comm {

// Arrivals by multicast: one reduction adds 1 to the inbox of every rank, and each rank polls one word of its own.
struct MulticastSync {
  static constexpr uint32_t kEpoch = kMulticastEpoch;

  // The last barrier at which a rank has arrived.
  static LC_DEVICE uint32_t* arrival(const RankView& v, uint32_t rank, uint32_t cell) {
    return word(v, rank, cell + kArrival);
  }

  // Called by warp 0.
  static LC_DEVICE void arrive(const RankView& v, uint32_t cell, uint32_t epoch, bool release) {
    if (ptx::lane_index() != 0) return;
    ptx::store_relaxed_sys(arrival(v, v.rank, cell), epoch);  // for a rank that waits in vain
    auto* inboxes = reinterpret_cast<uint32_t*>(v.multicast + cell + kInbox);
    if (release) {
      ptx::multimem_red_add_release_sys(inboxes, 1u);
    } else {
      ptx::multimem_red_add_relaxed_sys(inboxes, 1u);
    }
  }

  static LC_DEVICE Status wait(const RankView& v, uint32_t cell, uint32_t epoch) {
    if (ptx::lane_index() != 0) return Status::kNone;
    Patience patience(v, kFewPolls);
    const uint32_t* inbox = word(v, v.rank, cell + kInbox);
    while (static_cast<int32_t>(ptx::load_acquire_sys(inbox) - v.ranks * epoch) < 0) {
      if (const Status status = patience.after_poll(); status != Status::kNone) return status;
      ptx::spin_pause();
    }
    return Status::kNone;
  }
};

// Arrivals by stores into each peer's memory. Lane r serves rank r.
struct PeerSync {
  static constexpr uint32_t kEpoch = kPeerEpoch;

  static LC_DEVICE uint32_t* arrival(const RankView& v, uint32_t rank, uint32_t cell) {
    return word(v, rank, cell + kSlots) + rank;
  }

  static LC_DEVICE void arrive(const RankView& v, uint32_t cell, uint32_t epoch, bool release) {
    const uint32_t peer = ptx::lane_index();
    if (peer >= v.ranks) return;
    uint32_t* slot = word(v, peer, cell + kSlots) + v.rank;
    if (release) {
      ptx::store_release_sys(slot, epoch);
    } else {
      ptx::store_relaxed_sys(slot, epoch);
    }
  }

  static LC_DEVICE Status wait(const RankView& v, uint32_t cell, uint32_t epoch) {
    const uint32_t peer = ptx::lane_index();
    if (peer >= v.ranks) return Status::kNone;
    Patience patience(v, kFewPolls);
    const uint32_t* slot = word(v, v.rank, cell + kSlots) + peer;
    while (static_cast<int32_t>(ptx::load_acquire_sys(slot) - epoch) < 0) {
      if (const Status status = patience.after_poll(); status != Status::kNone) return status;
      ptx::spin_pause();
    }
    return Status::kNone;
  }
};

// What a block remembers of its barriers, in the first bytes of dynamic shared memory: registers are for packs.
constexpr uint32_t kOutcomeOffset = 0, kEpochOffset = 4, kBarrierBytes = 8;

template <class Sync>
class RankBarrier {
 public:
  // All threads of the block.
  LC_DEVICE explicit RankBarrier(const RankView& view) : v(view) {
    if (ptx::thread_index() != 0) return;
    const bool aborted = is_aborted(v);
    ptx::store_shared(base() + kEpochOffset, ptx::load_global(word(v, v.rank, cell_of(v) + Sync::kEpoch)));
    ptx::store_shared(base() + kOutcomeOffset, static_cast<uint32_t>(aborted));
  }

  // All threads of the block. release: what this kernel has written must be visible to the other ranks afterwards; what
  // earlier kernels wrote is anyway. False: the collective has given up, and the block must leave.
  LC_DEVICE bool wait(Stage stage, bool release) {
    ptx::sync_threads();
    if (ptx::warp_index() == 0) {
      // NOTE: lane 0 alone touches the epoch, because votes and shuffles do not order memory.
      const bool first = ptx::lane_index() == 0;
      const uint32_t last = first ? ptx::load_shared<uint32_t>(base() + kEpochOffset) : 0;
      const uint32_t cell = cell_of(v), epoch = ptx::shuffle(last, 0) + 1;
      // A rank that has given up does not arrive, so that a stream of collectives ends early.
      const bool aborted = ptx::any(first && ptx::load_shared<uint32_t>(base() + kOutcomeOffset) != 0);
      Status status = aborted ? Status::kPeerAborted : Status::kNone;
      if (status == Status::kNone) {
        Sync::arrive(v, cell, epoch, release);
        status = Sync::wait(v, cell, epoch);
      }
      const bool failed = ptx::any(status != Status::kNone);
      if (failed) report(status, stage, cell, epoch);
      if (first) {
        ptx::store_shared(base() + kOutcomeOffset, static_cast<uint32_t>(failed));
        ptx::store_shared(base() + kEpochOffset, epoch);
      }
    }
    ptx::sync_threads();
    return ptx::load_shared<uint32_t>(base() + kOutcomeOffset) == 0;
  }

  // One thread, at the end.
  LC_DEVICE void save() const {
    ptx::store_global(word(v, v.rank, cell_of(v) + Sync::kEpoch), ptx::load_shared<uint32_t>(base() + kEpochOffset));
  }

 private:
  static LC_DEVICE uint32_t base() { return ptx::dynamic_smem_base(); }

  // Warp 0. The arrivals that the peers keep show who is behind.
  LC_DEVICE void report(Status status, Stage stage, uint32_t cell, uint32_t epoch) const {
    const uint32_t peer = ptx::lane_index();
    const uint32_t arrived = peer < v.ranks ? ptx::load_relaxed_sys(Sync::arrival(v, peer, cell)) : epoch;
    const uint32_t missing = ptx::ballot(static_cast<int32_t>(arrived - epoch) < 0);
    const uint32_t failed = ptx::ballot(status != Status::kNone);
    const uint32_t first = ptx::popcount((missing & -missing) - 1);  // 32 if none is behind
    const uint32_t seen = ptx::shuffle(arrived, static_cast<int>(first % 32));
    if (peer == ptx::popcount((failed & -failed) - 1)) give_up(v, {status, stage, epoch, seen, missing});
  }

  const RankView& v;
};

}  // namespace longcat_ops::comm
