// Loads, stores, atomics and fences of the generic proxy.
#include <algorithm>
#include <cstring>

#include "emu/delivery.h"
#include "emu/engine.h"

namespace longcat_ops::emu {
namespace {

constexpr uint32_t kAtomicBytes = 8;

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
  Allocation& allocation = engine().find_global(address, bytes, operation, where);
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

// Reads no value: only that the address is one.
void prefetch_global(const void* address, const Location& where) {
  engine().memory.find(address, 1, "prefetch.global", where);
}

void store_global(void* address, const void* value, uint32_t bytes, const Location& where) {
  access_global(address, bytes, true, kWeak, false, "st.global", where);
  std::memcpy(address, value, bytes);
}

// 16 bytes are two words that the ISA makes atomic, read in any order.
void load_strong(const void* address, void* value, uint32_t bytes, Order order, Scope scope, const Location& where) {
  Thread& self = this_thread();
  Engine& machine = engine();
  maybe_yield(where);
  machine.note_poll(where);
  look(self, address);
  const char* name = order == Order::kAcquire ? "ld.acquire" : "ld.relaxed";
  check_alignment(reinterpret_cast<uint64_t>(address), bytes, name, where);
  const uint32_t unit = std::min(bytes, kAtomicBytes), count = bytes / unit, first = machine.random.below(count);
  for (uint32_t i = 0; i < count; ++i) {
    if (i > 0 && machine.random.one_in(2)) {
      machine.wake(&self);
      block("ready", where);
    }
    const uint32_t at = (first + i) % count * unit;
    const auto* word = static_cast<const uint8_t*>(address) + at;
    access_global(word, unit, false, strength(scope), false, name, where);
    std::memcpy(static_cast<uint8_t*>(value) + at, word, unit);
    observe(word, order, scope, where);
  }
}

// A relaxed store arrives later, its words one by one.
void store_strong(void* address, const void* value, uint32_t bytes, Order order, Scope scope, const Location& where) {
  Thread& self = this_thread();
  maybe_yield(where);
  access_global(address, bytes, true, strength(scope), false, order == Order::kRelease ? "st.release" : "st.relaxed",
                where);
  const uint32_t time = self.time();
  const std::shared_ptr<const Release> release = make_release(self, order, scope);
  if (order == Order::kRelaxed) return deliver(address, value, bytes, {time, std::min(bytes, kAtomicBytes)}, release);
  std::memcpy(address, value, bytes);
  publish(address, release, false);
  engine().note_event(static_cast<const uint8_t*>(address), bytes);
}

uint32_t atomic_add(uint32_t* address, uint32_t value, Order order, Scope scope, const Location& where) {
  maybe_yield(where);
  // NOTE: the read half is checked first: adding to a counter that was never initialised is an error.
  access_global(address, sizeof *address, false, strength(scope), false, "atomic add", where);
  access_global(address, sizeof *address, true, strength(scope), false, "atomic add", where);
  if (order == Order::kAcqRel) observe(address, order, scope, where);
  uint32_t old;
  std::memcpy(&old, address, sizeof old);
  const uint32_t sum = old + value;
  std::memcpy(address, &sum, sizeof sum);
  publish(address, make_release(this_thread(), order, scope), true);
  engine().note_event(reinterpret_cast<const uint8_t*>(address), sizeof *address);
  return old;
}

// Shared memory: the writing thread fences its own writes; a CTA that has acquired other CTAs' writes may fence them as
// well. Global memory: the reading CTA fences what it has acquired.
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

void fence_acquire_shared_cluster() {
  Thread& self = this_thread();
  self.clock.order_shared.join(self.shared_pending.order);
  self.clock.order_shared.join(self.shared_pending.order_shared);
  self.clock.async_shared.join(self.shared_pending.async_shared);
  self.shared_pending.clear();
}

}  // namespace longcat_ops::emu
