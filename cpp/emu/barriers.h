// Barriers in shared memory, named barriers and warp rendezvous: their state.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <vector>

#include "emu/clock.h"
#include "emu/error.h"

namespace longcat_ops::emu {

struct Thread;
struct Cta;

// What the arrivals of a phase make known.
struct BarrierPhase {
  Clock clock;
  bool across_cluster = false;  // another CTA released at cluster scope: the wait must have that scope too
  bool too_narrow = false;      // another CTA released at CTA scope only
};

struct MBarrier {
  bool fenced = false;   // its initialisation is visible to the async proxy
  bool observed = true;  // a thread has seen the newest complete phase
  uint32_t address = 0;
  uint32_t expected = 0;
  int64_t pending = 0;
  int64_t tx = 0;
  uint32_t phase = 0;  // phases completed
  uint32_t init_component = 0;
  uint32_t init_time = 0;
  Location init_at;
  Thread* init_by = nullptr;
  uint32_t shown_component = 0;  // of its initialisation as fence.mbarrier_init shows it to the cluster
  uint32_t shown_time = 0;       // 0: not yet
  uint32_t component = 0;        // of the copies that it counts; their time is first_time + phase
  uint32_t first_time = 1;
  BarrierPhase arriving;  // the phase in progress
  BarrierPhase complete;  // the newest complete phase
  std::vector<Thread*> waiters;

  uint32_t copy_time() const { return first_time + phase; }
  // Whether a thread of its CTA has seen that phase complete.
  bool has_seen(uint32_t one) const { return one < (observed ? phase : phase - 1); }
  void complete_tx(uint32_t bytes, uint32_t issued_in_phase, const Location& where);
  void complete_if_done(const Location& where);
};

class BarrierTable {
 public:
  explicit BarrierTable(size_t smem_bytes) : index_((smem_bytes + 7) / 8, 0) {}

  MBarrier* find(size_t offset);  // null: none there
  MBarrier& create(size_t offset);
  bool touches_live(size_t offset, size_t bytes) const;
  std::deque<MBarrier>& all() { return barriers_; }
  const std::deque<MBarrier>& all() const { return barriers_; }

 private:
  std::vector<uint16_t> index_;  // by 8-byte word: 1 + position in barriers_
  std::deque<MBarrier> barriers_;
};

struct NamedBarrier {
  uint32_t count = 0;
  uint32_t expected = 0;
  Clock arriving;
  std::vector<Thread*> waiters;
};

struct Collective {
  uint32_t count = 0;
  int kind = 0;
  Location where;
  std::array<void*, 32> payload;
  std::vector<Thread*> waiters;
};

}  // namespace longcat_ops::emu
