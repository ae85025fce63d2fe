#include "emu/sync.h"

#include <algorithm>

#include "emu/delivery.h"
#include "emu/engine.h"

namespace longcat_ops::emu {
namespace {

uint64_t cta_identity(const Cta& cta) { return uint64_t(cta.grid->number) << 32 | cta.index; }

// The narrowest scope that contains both the thread and that CTA.
Scope scope_of(int device, uint64_t cta, const Thread& thread) {
  const Grid& grid = *thread.cta->grid;
  if (cta == cta_identity(*thread.cta)) return Scope::kCta;
  if (cta >> 32 == grid.number && uint32_t(cta) / grid.launch.cluster == thread.cta->cluster->index)
    return Scope::kCluster;
  return device == grid.launch.device ? Scope::kGpu : Scope::kSys;
}

// After a fence at sys scope, every address of the same memory sees earlier writes. ISA: only after fence.proxy.alias.
void see_aliases(Thread& self, Scope scope) {
  const Engine& machine = engine();
  if (scope == Scope::kSys && machine.memory.has_multicast() && !machine.settings.pedantic_aliases)
    self.clock.alias.join(self.clock.order);
}

}  // namespace

std::shared_ptr<const Release> make_release(Thread& self, Order order, Scope scope) {
  if (is_release(order)) perform_writes(self);
  if (!engine().settings.detectors) return {};
  auto result = std::make_shared<Release>();
  Release& release = *result;
  release.reach = {scope, self.cta->grid->launch.device, cta_identity(*self.cta)};
  if (is_release(order)) {
    see_aliases(self, scope);
    release.order = self.clock.order;
    release.alias = self.clock.alias;
    self.tick();
  } else if (self.fence_scope) {
    release.order = self.fence_release;
    release.alias = self.fence_alias;
    release.reach.scope = std::min(scope, *self.fence_scope);
  } else {
    // The end of a launch released its work to the whole system, so a relaxed signal may announce that.
    if (self.cta->grid->base.empty()) return {};
    release.order = release.alias = self.cta->grid->base;
  }
  return result;
}

void publish(const void* address, const std::shared_ptr<const Release>& release, bool read_modify_write) {
  Engine& machine = engine();
  if (!read_modify_write) machine.sync.erase(reinterpret_cast<uint64_t>(address));
  if (!release) return;
  SyncVariable& variable = machine.sync[reinterpret_cast<uint64_t>(address)];
  variable.order.join(release->order);
  variable.alias.join(release->alias);
  if (std::ranges::find(variable.reaches, release->reach) == variable.reaches.end())
    variable.reaches.push_back(release->reach);
}

void observe(const void* address, Order order, Scope scope, const Location& where) {
  Thread& self = this_thread();
  Engine& machine = engine();
  if (!machine.settings.detectors) return;
  const auto found = machine.sync.find(reinterpret_cast<uint64_t>(address));
  if (found == machine.sync.end()) return;
  const SyncVariable& variable = found->second;
  Scope needed = Scope::kCta;
  bool reached = true;
  for (const Reach& other : variable.reaches) {
    const Scope distance = scope_of(other.device, other.cta, self);
    reached &= std::min(scope, other.scope) >= distance;
    needed = std::max(needed, distance);
  }
  if (is_acquire(order)) {
    if (!reached)
      fail("scope", "the value acquired here was released at a narrower scope, or this acquire does not reach so far",
           where);
    machine.join_order(self, variable.order);
    self.clock.alias.join(variable.alias);
  } else if (reached) {
    self.pending_acquire.join(variable.order);
    self.pending_alias.join(variable.alias);
    self.pending_scope = self.has_pending_acquire ? std::max(self.pending_scope, needed) : needed;
    self.has_pending_acquire = true;
  }
}

void look(Thread& self, const void* address) {
  if (self.looked_at.empty()) self.seen_events = engine().events;
  self.looked_at.push_back(static_cast<const uint8_t*>(address));
}

void fence_acq_rel(Scope scope, const Location&) {
  Thread& self = this_thread();
  Engine& machine = engine();
  perform_writes(self);
  if (!machine.settings.detectors) return;
  if (self.has_pending_acquire && scope >= self.pending_scope) {
    machine.join_order(self, self.pending_acquire);
    self.clock.alias.join(self.pending_alias);
    self.pending_acquire.clear();
    self.pending_alias.clear();
    self.has_pending_acquire = false;
  }
  see_aliases(self, scope);
  // NOTE: one fence is remembered. A fence narrower than gpu scope does not replace a wider one, which relaxed stores
  // may still rely on.
  if (!self.fence_scope || scope >= std::min(*self.fence_scope, Scope::kGpu)) {
    self.fence_release = self.clock.order;
    self.fence_alias = self.clock.alias;
    self.fence_scope = scope;
  }
  self.tick();
}

void fence_proxy_alias(const Location&) {
  Thread& self = this_thread();
  perform_writes(self);
  if (engine().settings.detectors) self.clock.alias.join(self.clock.order);
  self.tick();
}

}  // namespace longcat_ops::emu
