#include "emu/cluster.h"

#include <algorithm>
#include <cstring>

#include "emu/engine.h"

namespace longcat_ops::emu {

Cluster::Cluster(uint32_t index_, uint32_t size, uint32_t block)
    : index(index_),
      ctas(size, nullptr),
      smem_offset(1024 * (1 + engine().random.below(4))),
      live_threads(size * block),
      missing(size * block),
      arriving(size),
      complete(size) {
  if (size > 1) key = engine().random.below(16);
}

// A relaxed arrival makes known that the CTA has started, and what its thread's fences cover.
void Cluster::arrive(Thread& thread, bool release) {
  Cta& cta = *thread.cta;
  thread.cluster_arrived = true;
  thread.cluster_phase = phase;
  if (engine().settings.detectors) {
    if (release) {
      arriving.clock.join_across(thread.clock);
      arriving.async_global[cta.rank].join(thread.clock.async_global);
      thread.tick();
    } else {
      arriving.clock.order.raise(cta.start_component, cta.start_time);
      if (thread.fence_scope && *thread.fence_scope >= Scope::kCluster) {
        arriving.clock.order.join(thread.fence_release);
        arriving.clock.alias.join(thread.fence_alias);
      }
      if (thread.shown_component != kNobody) arriving.clock.order.raise(thread.shown_component, thread.shown_time);
      arriving.clock.order_shared.join(thread.shared_release);
      arriving.clock.async_shared.join(thread.clock.async_shared);
    }
  }
  --missing;
  complete_if_done();
}

void Cluster::thread_exits(const Thread& thread) {
  --live_threads;
  if (thread.cluster_arrived && thread.cluster_phase == phase) return;
  --missing;
  if (live_threads > 0) complete_if_done();
}

void Cluster::complete_if_done() {
  if (missing > 0) return;
  ++phase;
  missing = live_threads;
  complete = std::move(arriving);
  arriving = ClusterPhase(ctas.size());
  engine().wake_all(waiters);
}

std::string Cluster::describe_waiting(const Cta& cta) const {
  if (waiters.empty()) return "";
  uint32_t count = 0, first = 0;
  for (const auto& thread : cta.threads) {
    if (thread->done || (thread->cluster_arrived && thread->cluster_phase == phase)) continue;
    if (count++ == 0) first = thread->index;
  }
  if (count == 0) return "";
  return "\n  CTA " + std::to_string(cta.index) + ": the cluster barrier, phase " + std::to_string(phase) +
         ", lacks the arrival of " + std::to_string(count) + " threads, the first is " + std::to_string(first) + "; " +
         std::to_string(waiters.size()) + " threads of the cluster wait";
}

Cta& cluster_peer(uint32_t rank, const char* operation, const Location& where) {
  const Thread& self = this_thread();
  Cluster& cluster = *self.cta->cluster;
  if (rank >= cluster.size())
    fail("cluster",
         std::string(operation) + ": rank " + std::to_string(rank) + " in a cluster of " +
             std::to_string(cluster.size()) + " CTAs",
         where);
  Cta* cta = cluster.ctas[rank];
  if (cta == nullptr)
    fail("exit", std::string(operation) + ": the CTA of rank " + std::to_string(rank) + " has ended", where);
  if (cta != self.cta && engine().settings.detectors && self.clock.order[cta->start_component] < cta->start_time)
    fail("cluster",
         std::string(operation) + ": the CTA of rank " + std::to_string(rank) +
             " may not have started: a cluster barrier is missing",
         where);
  return *cta;
}

Cta& cluster_target(uint32_t address, uint32_t bytes, const char* operation, const Location& where) {
  const Cluster& cluster = *this_thread().cta->cluster;
  const uint32_t rank = address >> Cluster::kWindowBits ^ cluster.key;
  if (rank >= cluster.size())
    fail("out-of-bounds", std::string(operation) + ": not an address of the cluster's shared memory", where);
  Cta& cta = cluster_peer(rank, operation, where);
  cta.shared(address, bytes, operation, where);
  return cta;
}

void note_foreign(Cta& target, const Access& access) {
  for (ForeignAccess& other : target.foreign)
    if (other.component == access.component) {
      other.time = std::max(other.time, access.time);
      other.site = access.site;
      return;
    }
  target.foreign.push_back({access.component, access.time, access.site});
}

void note_foreign_arrival(Cta& target, const Access& access, uint32_t address, uint32_t phase) {
  const ForeignAccess newest{access.component, access.time, access.site};
  for (ForeignArrival& other : target.foreign_arrivals)
    if (other.access.component == access.component && other.address == address) {
      other = {newest, address, phase};
      return;
    }
  target.foreign_arrivals.push_back({newest, address, phase});
}

void check_foreign_done(Cta& cta, const Location& where) {
  if ((cta.foreign.empty() && cta.foreign_arrivals.empty()) || !engine().settings.detectors) return;
  VectorClock all;
  for (const auto& thread : cta.threads) all.join(thread->clock.order);
  const auto check = [&](const ForeignAccess& access) {
    if (all[access.component] >= access.time) return;
    const Site& site = engine().sites[access.site];
    fail("exit",
         std::string("a CTA may end before an access to its shared memory is over: ") + site.operation + " at " +
             describe(site.where) + " by " + engine().describe_component(access.component),
         where);
  };
  for (const ForeignAccess& access : cta.foreign) check(access);
  for (const ForeignArrival& arrival : cta.foreign_arrivals) {
    const MBarrier* barrier = cta.barriers.find(arrival.address - cta.smem_base);
    if (!barrier->has_seen(arrival.phase)) check(arrival.access);
  }
}

// Accesses to other CTAs' memory have a component of their own, so that fences can tell them from the rest. It gets a
// new time whenever the thread's own has changed.
Access cluster_access(Cta& target, const Location& where, const char* operation) {
  Thread& self = this_thread();
  Engine& machine = engine();
  Access access = machine.thread_access(self, where, operation);
  if (&target == self.cta || !machine.settings.detectors) return access;
  if (self.remote_component == kNobody) {
    self.remote_component = machine.extra_component(self.cta, "accesses across the cluster by thread", self.index);
    self.remote_time = machine.components[self.remote_component].last_time;
  }
  if (self.remote_since != self.time()) {
    ++self.remote_time;
    self.remote_since = self.time();
    self.clock.order.raise(self.remote_component, self.remote_time);
  }
  access.component = self.remote_component;
  access.time = self.remote_time;
  access.own_accesses_ordered = false;
  note_foreign(target, access);
  return access;
}

uint32_t cluster_rank() { return this_thread().cta->rank; }
uint32_t cluster_size() { return this_thread().cta->cluster->size(); }
uint32_t cluster_index() { return this_thread().cta->cluster->index; }

uint32_t cluster_address(uint32_t address, uint32_t rank, const Location& where) {
  const Thread& self = this_thread();
  const Cluster& cluster = *self.cta->cluster;
  if (rank >= cluster.size())
    fail("cluster",
         "mapa: rank " + std::to_string(rank) + " in a cluster of " + std::to_string(cluster.size()) + " CTAs", where);
  self.cta->shared(address, 1, "mapa", where);
  return cluster.window(rank) | (address & ((1u << Cluster::kWindowBits) - 1));
}

void cluster_arrive(bool release, const Location& where) {
  Thread& self = this_thread();
  maybe_yield(where);
  if (self.cluster_arrived)
    fail("cluster", "barrier.cluster.arrive again, without barrier.cluster.wait after the one before", where);
  self.cta->cluster->arrive(self, release);
}

void cluster_wait(const Location& where) {
  Thread& self = this_thread();
  Cluster& cluster = *self.cta->cluster;
  if (!self.cluster_arrived) fail("cluster", "barrier.cluster.wait without barrier.cluster.arrive", where);
  while (cluster.phase == self.cluster_phase) {
    cluster.waiters.push_back(&self);
    block("barrier.cluster.wait", where);
  }
  self.cluster_arrived = false;
  if (!engine().settings.detectors) return;
  engine().join(self, cluster.complete.clock);
  self.clock.async_global.join(cluster.complete.async_global[self.cta->rank]);
}

}  // namespace longcat_ops::emu
