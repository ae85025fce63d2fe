// What the kernels of expert parallelism share: where things lie, and how a rank tells the others that its rows are
// there.
//
// A call has an epoch, counted in device memory, so that a replayed graph continues where the last launch ended. Epochs
// wrap around, and none is 0. Flags and lines hold the epoch of the call that wrote them, and are compared for
// equality: nobody can be a call ahead on the same buffer, and a buffer that has rested for 2^31 calls looks new to
// nobody.
#pragma once

#include "comm/ep_config.h"
#include "comm/rank_view.cuh"

namespace longcat_ops::comm {

static_assert(kMaxBuffers == LC_EP_MAX_BUFFERS);

enum class Traffic : uint32_t { kDispatch = LC_EP_DISPATCH, kCombine = LC_EP_COMBINE };

struct ExpertView {
  RankView ranks;
  uint32_t* head;     // the table: [kHeadWords], then the buffers
  uint32_t* call;     // the part of this call's buffer
  uint64_t lines;     // [parity][source][experts + 1] {offset, epoch}, from the start of the symmetric memory
  uint64_t flags;     // [traffic][buffer] lines of [source]
  uint64_t rows;      // of this buffer [received, hidden]
  uint64_t scales;    // of this buffer [received, ceil(hidden / 128)]
  uint64_t returned;  // of this buffer [returned, hidden]
  uint32_t experts;   // of all ranks
  uint32_t local;     // of each
  uint32_t buffer;
  uint32_t received;  // the most rows that a rank may receive
  uint32_t back;      // the most rows that may come back to one
};

// Expert g lies on rank g / local. Run i = e * ranks + source: the rows of local expert e from one source.
struct ExpertTable {
  int32_t* send_shift;    // [experts] the row at the receiver of expert g, less the row of the sender's plan
  uint32_t* first;        // [experts + 1] the first row of each run, then the end
  int32_t* return_shift;  // [experts] the row of the source's plan, less the row here

  LC_DEVICE explicit ExpertTable(const ExpertView& e)
      : send_shift(reinterpret_cast<int32_t*>(e.call + kCallArrays)),
        first(e.call + kCallArrays + e.experts),
        return_shift(reinterpret_cast<int32_t*>(e.call + kCallArrays + 2 * e.experts + 1)) {}
};

// NOTE: 1 does not follow the highest epoch, since epochs must be even and odd in turn.
LC_DEVICE uint32_t epoch_after(uint32_t epoch) { return epoch != 0xffffffffu ? epoch + 1 : 2; }

LC_DEVICE uint32_t* flag_of(const ExpertView& e, uint32_t rank, Traffic traffic, uint32_t source) {
  const uint64_t line = kFlagLineBytes * (kMaxBuffers * static_cast<uint32_t>(traffic) + e.buffer);
  return reinterpret_cast<uint32_t*>(e.ranks.memory[rank] + e.flags + line) + source;
}

LC_DEVICE Stage stage_of(Traffic traffic) { return traffic == Traffic::kDispatch ? Stage::kDispatch : Stage::kCombine; }

LC_DEVICE void count(const ExpertView& e, ExpertCounter which, uint64_t more) {
  auto* counter = reinterpret_cast<uint64_t*>(e.head + kHeadCounters) + which;
  ptx::store_global(counter, ptx::load_global(counter) + more);
}

// All threads of each block of a grid, at its end. The last block flags the rows of all of them at every rank; true in
// one thread of it. A rank that has given up flags nobody: some of its rows may be missing.
// The other blocks release at the scope of this GPU; the last one passes their writes on when it releases to the
// system.
LC_DEVICE bool flag_rows(const ExpertView& e, Traffic traffic) {
  ptx::sync_threads();
  if (ptx::warp_index() != 0) return false;
  const uint32_t rank = ptx::lane_index(), epoch = ptx::load_global(e.call + kCallEpoch);
  bool last = false;
  if (rank == 0) {
    uint32_t* ticket = e.call + kCallTickets + static_cast<uint32_t>(traffic);
    last = ptx::atomic_add_acq_rel_gpu(ticket, 1) + 1 == ptx::grid_size();
    if (last) ptx::store_global(ticket, 0u);
    if (last && is_aborted(e.ranks)) {
      give_up(e.ranks, {Status::kPeerAborted, stage_of(traffic), 0, 0, 0});
      last = false;
    }
  }
  if (!ptx::any(last)) return false;
  ptx::warp_sync();  // all lanes release what the first has acquired
  if (rank < e.ranks.ranks) ptx::store_release_sys(flag_of(e, rank, traffic, e.ranks.rank), epoch);
  return rank == 0;
}

}  // namespace longcat_ops::comm
