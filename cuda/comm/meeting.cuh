// The barrier of a collective: the blocks of one index on all ranks meet, and none goes on before all have arrived.
// Epochs count meetings; they live in device memory, so a replayed graph continues where the last launch ended, and
// they wrap around.
#pragma once

#include "comm/rank_view.cuh"

namespace longcat_ops::comm {

// Arrivals by multicast: one reduction adds 1 to the inbox of every rank, and each rank polls one word of its own.
struct MulticastSync {
  // Called by warp 0.
  static LC_DEVICE void arrive(const RankView& v, uint32_t cell, uint32_t epoch, bool release) {
    if (ptx::lane_index() != 0) return;
    ptx::store_relaxed_sys(word(v, v.rank, cell + kSlots) + v.rank, epoch);  // read by a rank whose wait ends in vain
    auto* inboxes = reinterpret_cast<uint32_t*>(v.multicast + cell + kInbox);
    if (release) {
      ptx::multimem_red_add_release_sys(inboxes, 1u);
    } else {
      ptx::multimem_red_add_relaxed_sys(inboxes, 1u);
    }
  }

  static LC_DEVICE Status wait(const RankView& v, uint32_t cell, uint32_t epoch) {
    if (ptx::lane_index() != 0) return Status::kNone;
    Patience patience(v);
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
    Patience patience(v);
    const uint32_t* slot = word(v, v.rank, cell + kSlots) + peer;
    while (static_cast<int32_t>(ptx::load_acquire_sys(slot) - epoch) < 0) {
      if (const Status status = patience.after_poll(); status != Status::kNone) return status;
      ptx::spin_pause();
    }
    return Status::kNone;
  }
};

template <class Sync>
class Meeting {
 public:
  // Uses the first 4 bytes of dynamic shared memory.
  LC_DEVICE explicit Meeting(const RankView& view)
      : v(view), cell(cell_of(view)), epoch(ptx::load_global(word(view, view.rank, cell + kEpoch))) {}

  // All threads of the block. release: what this kernel has written must be visible to the other ranks afterwards; what
  // earlier kernels wrote is anyway. False: the collective has given up, and the block must leave.
  LC_DEVICE bool meet(Stage stage, bool release) {
    ++epoch;
    ptx::sync_threads();
    if (ptx::warp_index() == 0) {
      // A rank that has given up does not arrive, so that a stream of collectives ends early.
      Status status = is_aborted(v) ? Status::kPeerAborted : Status::kNone;
      status = ptx::any(status != Status::kNone) ? Status::kPeerAborted : Status::kNone;
      if (status == Status::kNone) {
        Sync::arrive(v, cell, epoch, release);
        status = Sync::wait(v, cell, epoch);
      }
      const bool failed = ptx::any(status != Status::kNone);
      if (failed) report(status, stage);
      if (ptx::lane_index() == 0) ptx::store_shared(ptx::dynamic_smem_base(), static_cast<uint32_t>(failed));
    }
    ptx::sync_threads();
    return ptx::load_shared<uint32_t>(ptx::dynamic_smem_base()) == 0;
  }

  // One thread, at the end.
  LC_DEVICE void save() const { ptx::store_global(word(v, v.rank, cell + kEpoch), epoch); }

 private:
  // Warp 0. Every rank keeps its own arrivals in its slot; reading those of the peers finds out who is behind.
  LC_DEVICE void report(Status status, Stage stage) const {
    const uint32_t peer = ptx::lane_index();
    const uint32_t arrived = peer < v.ranks ? ptx::load_relaxed_sys(word(v, peer, cell + kSlots) + peer) : epoch;
    const uint32_t missing = ptx::ballot(static_cast<int32_t>(arrived - epoch) < 0);
    const uint32_t failed = ptx::ballot(status != Status::kNone);
    const uint32_t first = ptx::popcount((missing & -missing) - 1);  // 32 if none is behind
    const uint32_t seen = ptx::shuffle(arrived, static_cast<int>(first % 32));
    if (peer == ptx::popcount((failed & -failed) - 1)) give_up(v, {status, stage, epoch, seen, missing});
  }

  const RankView& v;
  uint32_t cell, epoch;
};

}  // namespace longcat_ops::comm
