// Loads, stores, atomics and fences of the generic proxy.
#include <algorithm>
#include <cstring>

#include "emu/engine.h"

namespace longcat_ops::emu {
namespace {

uint64_t cta_identity(const Cta& cta) { return uint64_t(cta.grid->number) << 32 | cta.index; }

// The narrowest scope that holds both the thread and that CTA.
Scope scope_of(int device, uint64_t cta, const Thread& thread) {
  const Grid& grid = *thread.cta->grid;
  if (cta == cta_identity(*thread.cta)) return Scope::kCta;
  if (cta >> 32 == grid.number && uint32_t(cta) / grid.launch.cluster == thread.cta->cluster->index)
    return Scope::kCluster;
  return device == grid.launch.device ? Scope::kGpu : Scope::kSys;
}

uint8_t strength(Scope scope) { return uint8_t(1 + int(scope)); }

void access_shared(uint32_t address, uint32_t bytes, bool write, const char* operation, const Location& where) {
  Thread& self = this_thread();
  Cta& cta = *self.cta;
  cta.shared(address, bytes, operation, where);
  check_alignment(address, bytes, operation, where);
  if (cta.barriers.touches_live(address - cta.smem_base, bytes))
    fail("mbarrier", std::string(operation) + " touches a live mbarrier", where);
  Access access = engine().thread_access(self, where, operation);
  access.write = write;
  access.check_initialised = !write;
  engine().check_shared(cta, address, bytes, access);
}

void access_global(const void* address, uint32_t bytes, bool write, uint8_t strength, bool read_only,
                   const char* operation, const Location& where) {
  Thread& self = this_thread();
  Allocation& allocation = engine().memory.find(address, bytes, operation, where);
  check_alignment(reinterpret_cast<uint64_t>(address), bytes, operation, where);
  Access access = engine().thread_access(self, where, operation);
  access.write = write;
  access.strength = strength;
  access.check_initialised = !write;
  const Grid& grid = *self.cta->grid;
  access.read_only = read_only;
  access.launch_base = &grid.base;
  access.predecessor_final = grid.predecessor != nullptr ? &grid.predecessor->final : nullptr;
  engine().check_global(allocation, address, bytes, access);
}

}  // namespace

// What a write of `order` at `scope` makes known to those who acquire it. A read-modify-write keeps what was there.
void publish(const void* address, Order order, Scope scope, bool read_modify_write) {
  Thread& self = this_thread();
  Engine& machine = engine();
  machine.note_event();
  if (!machine.settings.detectors) return;
  const bool release = order == Order::kRelease || order == Order::kAcqRel;
  SyncVariable& variable = machine.sync[reinterpret_cast<uint64_t>(address)];
  if (!read_modify_write) {
    variable.order.clear();
    variable.released = false;
  }
  if (!release && !self.fence_scope) return;
  const Scope reach = release ? scope : std::min(scope, *self.fence_scope);
  variable.order.join(release ? self.clock.order : self.fence_release);
  variable.scope = variable.released ? std::min(variable.scope, reach) : reach;
  variable.released = true;
  variable.device = self.cta->grid->launch.device;
  variable.cta = cta_identity(*self.cta);
  if (release) self.tick();
}

void observe(const void* address, Order order, Scope scope, const Location& where) {
  Thread& self = this_thread();
  Engine& machine = engine();
  self.seen_events = machine.events;
  if (!machine.settings.detectors) return;
  const auto found = machine.sync.find(reinterpret_cast<uint64_t>(address));
  if (found == machine.sync.end() || !found->second.released) return;
  const SyncVariable& variable = found->second;
  const Scope needed = scope_of(variable.device, variable.cta, self);
  const bool reached = std::min(variable.scope, scope) >= needed;
  if (order == Order::kAcquire || order == Order::kAcqRel) {
    if (!reached)
      fail("scope", "the value acquired here was released at a narrower scope, or this acquire does not reach so far",
           where);
    machine.join_order(self, variable.order);
  } else if (reached) {
    self.pending_acquire.join(variable.order);
    self.pending_scope = self.has_pending_acquire ? std::max(self.pending_scope, needed) : needed;
    self.has_pending_acquire = true;
  }
}

void load_shared(uint32_t address, void* value, uint32_t bytes, const Location& where) {
  access_shared(address, bytes, false, "ld.shared", where);
  std::memcpy(value, this_thread().cta->shared(address, bytes, "ld.shared", where), bytes);
}

void store_shared(uint32_t address, const void* value, uint32_t bytes, const Location& where) {
  access_shared(address, bytes, true, "st.shared", where);
  std::memcpy(this_thread().cta->shared(address, bytes, "st.shared", where), value, bytes);
}

void load_global(const void* address, void* value, uint32_t bytes, bool read_only, const Location& where) {
  access_global(address, bytes, false, kWeak, read_only, read_only ? "ld.global.nc" : "ld.global", where);
  std::memcpy(value, address, bytes);
}

void store_global(void* address, const void* value, uint32_t bytes, const Location& where) {
  access_global(address, bytes, true, kWeak, false, "st.global", where);
  std::memcpy(address, value, bytes);
}

void load_strong(const void* address, void* value, uint32_t bytes, Order order, Scope scope, const Location& where) {
  maybe_yield(where);
  engine().note_poll(where);
  access_global(address, bytes, false, strength(scope), false, order == Order::kAcquire ? "ld.acquire" : "ld.relaxed",
                where);
  std::memcpy(value, address, bytes);
  observe(address, order, scope, where);
}

void store_strong(void* address, const void* value, uint32_t bytes, Order order, Scope scope, const Location& where) {
  maybe_yield(where);
  access_global(address, bytes, true, strength(scope), false, order == Order::kRelease ? "st.release" : "st.relaxed",
                where);
  std::memcpy(address, value, bytes);
  publish(address, order, scope, false);
}

uint32_t atomic_add(uint32_t* address, uint32_t value, Order order, Scope scope, const Location& where) {
  maybe_yield(where);
  // NOTE: the read half is checked first: a counter that nobody initialised is an error.
  access_global(address, sizeof *address, false, strength(scope), false, "atomic add", where);
  access_global(address, sizeof *address, true, strength(scope), false, "atomic add", where);
  if (order == Order::kAcqRel) observe(address, order, scope, where);
  uint32_t old;
  std::memcpy(&old, address, sizeof old);
  const uint32_t sum = old + value;
  std::memcpy(address, &sum, sizeof sum);
  publish(address, order, scope, true);
  return old;
}

void fence_acq_rel(Scope scope, const Location&) {
  Thread& self = this_thread();
  Engine& machine = engine();
  if (!machine.settings.detectors) return;
  if (self.has_pending_acquire && scope >= self.pending_scope) {
    machine.join_order(self, self.pending_acquire);
    self.pending_acquire.clear();
    self.has_pending_acquire = false;
  }
  // NOTE: one fence is remembered. One within the GPU does not replace a wider one, which relaxed stores may still rely
  // on.
  if (!self.fence_scope || scope >= std::min(*self.fence_scope, Scope::kGpu)) {
    self.fence_release = self.clock.order;
    self.fence_scope = scope;
  }
  self.tick();
}

// Shared memory: the writing thread fences its own writes; those of other CTAs, the CTA that has acquired them may
// fence as well. Global memory: the reading CTA fences what it has acquired.
void fence_proxy_async(bool own, bool cluster, bool global) {
  Thread& self = this_thread();
  if (own) {
    for (MBarrier& barrier : self.cta->barriers.all()) barrier.fenced |= barrier.init_by == &self;
    self.clock.async_shared.raise(self.component, self.time());
    for (const ForeignAccess& other : self.cta->foreign)
      self.clock.async_shared.raise(other.component, self.clock.order[other.component]);
  }
  if (cluster && self.remote_component != kNobody)
    self.clock.async_shared.raise(self.remote_component, self.remote_time);
  if (global) self.clock.async_global.join(self.clock.order);
  self.tick();
}

void fence_mbarrier_init() {
  Thread& self = this_thread();
  if (self.shown_component == kNobody) {
    self.shown_component = engine().extra_component(self.cta, "mbarriers initialised by thread", self.index);
    self.shown_time = engine().components[self.shown_component].last_time;
  }
  self.clock.order.raise(self.shown_component, ++self.shown_time);
  for (MBarrier& barrier : self.cta->barriers.all()) {
    if (barrier.init_by != &self || barrier.shown_time != 0) continue;
    barrier.fenced = true;
    barrier.shown_component = self.shown_component;
    barrier.shown_time = self.shown_time;
  }
}

void fence_release_shared_cluster() {
  Thread& self = this_thread();
  if (!engine().settings.detectors) return;
  self.shared_release = self.clock.order;
  self.tick();
}

}  // namespace longcat_ops::emu
