#include <algorithm>

#include "emu/engine.h"

namespace longcat_ops::emu {
namespace {

constexpr int64_t kLargestCount = (1 << 20) - 1;

MBarrier& own_barrier(uint32_t address, const Location& where) {
  return live_barrier(*this_thread().cta, address, where);
}

bool phase_complete(const MBarrier& barrier, uint32_t parity) { return (barrier.phase & 1) != parity; }

void acquire_phase(MBarrier& barrier, Order order, Scope scope, const Location& where) {
  barrier.observed = true;
  this_thread().failed_tries = 0;
  if (!engine().settings.detectors) return;
  const BarrierPhase& phase = barrier.complete;
  if (phase.too_narrow) fail("scope", "another CTA arrived at the mbarrier with release at CTA scope", where);
  if (phase.across_cluster && scope < Scope::kCluster)
    fail("scope", "another CTA arrived at the mbarrier: the wait must acquire at cluster scope", where);
  if (order == Order::kRelaxed)
    this_thread().shared_pending.join(phase.clock);
  else
    engine().join(this_thread(), phase.clock);
}

// `own`: by a thread of the mbarrier's CTA.
void make_known(BarrierPhase& phase, Order order, Scope scope, bool own) {
  Thread& self = this_thread();
  ++engine().stats.clock_joins;
  if (order == Order::kRelease) {
    if (own)
      phase.clock.join(self.clock);
    else
      phase.clock.join_across(self.clock);
    phase.too_narrow |= !own && scope < Scope::kCluster;
    phase.across_cluster |= !own;
    self.tick();
    return;
  }
  // Relaxed: makes known what earlier fences cover.
  const bool fenced = self.fence_scope && *self.fence_scope >= (own ? Scope::kCta : Scope::kCluster);
  if (fenced) {
    phase.clock.order.join(self.fence_release);
    phase.clock.alias.join(self.fence_alias);
  }
  phase.clock.order_shared.join(self.shared_release);
  phase.clock.async_shared.join(self.clock.async_shared);
  phase.across_cluster |= !own && (fenced || !self.shared_release.empty());
}

void arrive_at(MBarrier& barrier, uint32_t count, uint32_t expect_bytes, Order order, Scope scope, bool own,
               const Location& where) {
  barrier.tx += expect_bytes;
  if (barrier.tx > kLargestCount) fail("mbarrier", "tx-count out of range", where);
  if (count == 0) return;
  if (barrier.pending < int64_t(count))
    fail("mbarrier", "more arrivals in a phase than the " + std::to_string(barrier.expected) + " expected", where);
  // NOTE: another CTA may be a phase ahead of the waits here; complete_if_done sees whether a phase was missed.
  if (own && !barrier.observed)
    fail("mbarrier",
         "arrival in phase " + std::to_string(barrier.phase) + " before any wait has seen phase " +
             std::to_string(barrier.phase - 1) + " complete",
         where);
  if (engine().settings.detectors) make_known(barrier.arriving, order, scope, own);
  barrier.pending -= count;
  barrier.complete_if_done(where);
}

}  // namespace

MBarrier& live_barrier(Cta& cta, uint32_t address, const Location& where) {
  const Thread& self = this_thread();
  cta.shared(address, 8, "mbarrier", where);
  check_alignment(address, 8, "mbarrier", where);
  MBarrier* barrier = cta.barriers.find(address - cta.smem_base);
  if (barrier == nullptr) fail("mbarrier", "there is no initialised mbarrier here", where);
  if (!engine().settings.detectors) return *barrier;
  const bool shown = barrier->shown_time != 0;
  if (&cta != self.cta && !shown)
    fail("mbarrier", "another CTA may not see the mbarrier's initialisation: fence.mbarrier_init is missing", where);
  const bool known = (shown && self.clock.order[barrier->shown_component] >= barrier->shown_time) ||
                     (&cta == self.cta && self.clock.order[barrier->init_component] >= barrier->init_time);
  if (!known)
    fail("race", "use of an mbarrier is not ordered after its initialisation at " + describe(barrier->init_at), where);
  return *barrier;
}

MBarrier* BarrierTable::find(size_t offset) {
  const uint16_t position = index_[offset / 8];
  return position == 0 ? nullptr : &barriers_[position - 1];
}

MBarrier& BarrierTable::create(size_t offset) {
  barriers_.emplace_back();
  index_[offset / 8] = uint16_t(barriers_.size());
  return barriers_.back();
}

bool BarrierTable::touches_live(size_t offset, size_t bytes) const {
  if (barriers_.empty()) return false;
  for (size_t word = offset / 8; word < (offset + bytes + 7) / 8; ++word)
    if (index_[word] != 0) return true;
  return false;
}

void MBarrier::complete_if_done(const Location& where) {
  if (pending != 0 || tx != 0) return;
  if (!observed)
    fail("mbarrier",
         "phase " + std::to_string(phase) + " completes before any wait has seen phase " + std::to_string(phase - 1) +
             " complete",
         where);
  ++phase;
  observed = false;
  pending = expected;
  complete = std::move(arriving);
  arriving = {};
  engine().wake_all(waiters);
  engine().note_event();
}

void MBarrier::complete_tx(uint32_t bytes, uint32_t issued_in_phase, const Location& where) {
  if (phase != issued_in_phase)
    fail("mbarrier",
         "a copy was issued in phase " + std::to_string(issued_in_phase) + " and completes in phase " +
             std::to_string(phase) + ": its bytes were not expected",
         where);
  tx -= bytes;
  if (tx < -kLargestCount) fail("mbarrier", "tx-count out of range", where);
  if (engine().settings.detectors) arriving.clock.order.raise(component, copy_time());
  complete_if_done(where);
}

void mbarrier_init(uint32_t address, uint32_t count, const Location& where) {
  Thread& self = this_thread();
  Cta& cta = *self.cta;
  constexpr const char* kName = "mbarrier.init";
  cta.shared(address, 8, kName, where);
  check_alignment(address, 8, kName, where);
  Access access = engine().thread_access(self, where, kName);
  access.write = true;
  engine().check_shared(cta, address, 8, access);
  if (count < 1 || count > kLargestCount) fail("mbarrier", "init with count " + std::to_string(count), where);
  if (cta.barriers.find(address - cta.smem_base) != nullptr) fail("mbarrier", "init of a live mbarrier", where);
  MBarrier& barrier = cta.barriers.create(address - cta.smem_base);
  barrier.component =
      engine().extra_component(&cta, "copies counted by mbarrier", uint32_t(cta.barriers.all().size() - 1));
  barrier.first_time = engine().components[barrier.component].last_time + 1;
  barrier.address = address;
  barrier.expected = count;
  barrier.pending = count;
  barrier.init_component = self.component;
  barrier.init_time = self.time();
  barrier.init_at = where;
  barrier.init_by = &self;
}

void mbarrier_arrive(uint32_t address, uint32_t count, uint32_t expect_bytes, const Location& where) {
  maybe_yield(where);
  arrive_at(own_barrier(address, where), count, expect_bytes, Order::kRelease, Scope::kCta, true, where);
}

void mbarrier_arrive_cluster(uint32_t address, uint32_t count, uint32_t expect_bytes, Order order, Scope scope,
                             const Location& where) {
  constexpr const char* kName = "mbarrier.arrive on shared::cluster";
  maybe_yield(where);
  Thread& self = this_thread();
  Cta& cta = cluster_target(address, 8, kName, where);
  MBarrier& barrier = live_barrier(cta, address, where);
  if (&cta != self.cta) note_foreign_arrival(cta, engine().thread_access(self, where, kName), address, barrier.phase);
  arrive_at(barrier, count, expect_bytes, order, scope, &cta == self.cta, where);
}

void mbarrier_wait(uint32_t address, uint32_t parity, Order order, Scope scope, const Location& where) {
  Thread& self = this_thread();
  MBarrier& barrier = own_barrier(address, where);
  while (!phase_complete(barrier, parity)) {
    barrier.waiters.push_back(&self);
    block("mbarrier wait", where);
  }
  acquire_phase(barrier, order, scope, where);
}

bool mbarrier_try_wait(uint32_t address, uint32_t parity, Order order, Scope scope, const Location& where) {
  Thread& self = this_thread();
  MBarrier& barrier = own_barrier(address, where);
  if (!phase_complete(barrier, parity)) {
    // The first tries may time out; later ones wait, so that loops do not hide a deadlock.
    constexpr uint32_t kTimeouts = 2;
    if (self.failed_tries < kTimeouts && engine().random.one_in(2)) {
      ++self.failed_tries;
      engine().wake(&self);
      block("ready", where);
      if (!phase_complete(barrier, parity)) return false;
    }
    mbarrier_wait(address, parity, order, scope, where);
    return true;
  }
  acquire_phase(barrier, order, scope, where);
  return true;
}

bool mbarrier_test_wait(uint32_t address, uint32_t parity, Order order, Scope scope, const Location& where) {
  Thread& self = this_thread();
  engine().note_poll(where);
  engine().wake(&self);
  block("ready", where);
  MBarrier& barrier = own_barrier(address, where);
  look(self, nullptr);
  if (!phase_complete(barrier, parity)) return false;
  acquire_phase(barrier, order, scope, where);
  return true;
}

}  // namespace longcat_ops::emu
