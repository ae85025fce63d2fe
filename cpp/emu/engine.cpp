#include "emu/engine.h"

#include <algorithm>
#include <cstdio>

#include "emu/delivery.h"
#include "emu/wgmma.h"

namespace longcat_ops::emu {

thread_local Current current;

namespace {

// Unwinds the threads that are left after an error.
struct Cancelled {};

std::string describe_thread(int device, uint32_t cta, uint32_t thread) {
  return "device " + std::to_string(device) + " CTA " + std::to_string(cta) + " thread " + std::to_string(thread);
}

std::string hex(uint64_t value) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

struct Place {
  const Engine& engine;
  const char* memory;        // "shared memory" or the allocation's name
  const Cta* cta = nullptr;  // whose shared memory
};

// Ordered by a fence that covers only what a CTA does to its own shared memory.
bool ordered_as_own(const Place& place, const Access& access, uint32_t component, uint32_t time) {
  if (place.cta == nullptr || access.order_shared == nullptr || (*access.order_shared)[component] < time) return false;
  const Component& who = place.engine.components[component];
  return who.cta == place.cta->index && who.device == place.cta->grid->launch.device;
}

void report_fault(void* context, Fault fault, const Access& access, const Cell& cell, const ReadEpoch* read,
                  size_t offset) {
  const Place& place = *static_cast<const Place*>(context);
  const Site& mine = place.engine.sites[access.site];
  auto other = [&](uint16_t site, uint32_t component) {
    const Site& theirs = place.engine.sites[site];
    return std::string(theirs.operation) + " at " + describe(theirs.where) + " by " +
           place.engine.describe_component(component);
  };
  const std::string what = std::string(access.write ? "write by " : "read by ") + mine.operation;
  const std::string at = std::string(", in ") + place.memory + "+" + hex(offset);
  switch (fault) {
    case Fault::kWriteRace:
      if (ordered_as_own(place, access, cell.write_component, cell.write_time)) return;
      fail("race", what + " is not ordered after the write by " + other(cell.write_site, cell.write_component) + at,
           mine.where);
    case Fault::kReadRace:
      if (ordered_as_own(place, access, read->component, read->time)) return;
      fail("race", what + " is not ordered after the read by " + other(read->site, read->component) + at, mine.where);
    case Fault::kScope:
      fail("scope",
           what + " and the access by " +
               (read != nullptr ? other(read->site, read->component) : other(cell.write_site, cell.write_component)) +
               " have a scope that does not include both" + at,
           mine.where);
    case Fault::kAlias:
      fail("alias",
           what + (access.multicast ? " through the multicast address" : " through the device's own address") +
               " may not see the access through the other one by " +
               (read != nullptr ? other(read->site, read->component) : other(cell.write_site, cell.write_component)) +
               (access.pedantic ? ": a fence.proxy.alias is missing"
                                : ": neither released and acquired at sys scope nor fenced by fence.proxy.alias") +
               at,
           mine.where);
    case Fault::kProxy:
      fail("proxy",
           what + " through the async proxy may not see the generic write by " +
               other(cell.write_site, cell.write_component) + ": a fence.proxy.async is missing" + at,
           mine.where);
    case Fault::kUninitialised: fail("uninitialised", what + at + ", which was never written", mine.where);
    case Fault::kSwizzle:
      fail("swizzle",
           what + " expects another swizzle than that of the copy by " + other(cell.write_site, cell.write_component) +
               at,
           mine.where);
    case Fault::kReadOnly:
      if (read == nullptr)
        fail("read-only",
             what + " (ld.global.nc) of data that this launch wrote, " + other(cell.write_site, cell.write_component) +
                 at,
             mine.where);
      fail("read-only",
           what + " changes data that this launch read as never written (ld.global.nc), " +
               other(read->site, read->component) + at,
           mine.where);
  }
}

}  // namespace

std::string describe(const Location& where) {
  const std::string file = where.file_name();
  const size_t slash = file.rfind('/');
  return (slash == std::string::npos ? file : file.substr(slash + 1)) + ":" + std::to_string(where.line());
}

void fail(const char* kind, const std::string& text, const Location& where) {
  std::string full = text + " at " + describe(where);
  if (const Thread* thread = current.thread)
    full += " (" + describe_thread(thread->cta->grid->launch.device, thread->cta->index, thread->index) + " of " +
            thread->cta->grid->launch.name + ")";
  throw Error(kind, full);
}

Thread& this_thread() {
  if (current.thread == nullptr) throw Error("launch", "a primitive was called outside a launched kernel");
  return *current.thread;
}

void run_thread_body() {
  Thread* self = current.thread;
  self->fiber.arrived();
  Engine& machine = engine();
  auto record = [&](Error error) {
    if (!machine.error) machine.error = std::make_unique<Error>(std::move(error));
  };
  try {
    self->cta->grid->launch.body();
    check_exit(*self);
  } catch (const Error& error) {
    record(error);
  } catch (const Cancelled&) {
  } catch (const std::exception& error) {
    record(Error("launch", std::string("the kernel threw: ") + error.what()));
  }
  self->done = true;
  self->fiber.leave(true);
}

void block(const char* on, const Location& where) {
  Thread& self = this_thread();
  self.blocked_on = on;
  self.blocked_at = where;
  self.fiber.leave();
  self.blocked_on = nullptr;
  if (engine().cancelling) throw Cancelled();
}

void maybe_yield(const Location& where) {
  if (!engine().random.one_in(8)) return;
  engine().wake(&this_thread());
  block("ready", where);
}

void check_alignment(uint64_t address, uint64_t alignment, const char* operation, const Location& where) {
  if (address % alignment == 0) return;
  fail("misaligned", std::string(operation) + " at " + hex(address) + " needs " + std::to_string(alignment) + " B",
       where);
}

Engine::Engine(uint64_t seed_, Policy policy_, Settings settings_)
    : seed(seed_), policy(policy_), settings(settings_), random(seed_) {
  sites.push_back({Location{}, "?"});
}

Engine::~Engine() = default;

void Engine::wake_all(std::vector<Thread*>& threads) {
  runnable.insert(runnable.end(), threads.begin(), threads.end());
  threads.clear();
}

void Engine::note_event() {
  ++events;
  polls = 0;
  wake_all(spinning);
}

void Engine::note_event(const uint8_t* address, size_t bytes) {
  ++events;
  polls = 0;
  constexpr size_t kMost = 16;  // a thread that looks at more is woken by everything
  const auto concerned = [&](const Thread* thread) {
    const auto& seen = thread->looked_at;
    return seen.empty() || seen.size() > kMost || std::ranges::any_of(seen, [&](const uint8_t* at) {
             return at == nullptr || (at + 16 > address && at < address + bytes);
           });
  };
  const auto rest = std::ranges::stable_partition(spinning, std::not_fn(concerned));
  runnable.insert(runnable.end(), rest.begin(), rest.end());
  spinning.erase(rest.begin(), rest.end());
}

void Engine::note_poll(const Location& where) {
  constexpr uint64_t kHopeless = 20'000'000;
  if (++polls > kHopeless) fail("deadlock", "endless polling: nothing has changed for a long time", where);
}

void Engine::join(Thread& thread, const Clock& other) {
  if (!settings.detectors) return;
  ++stats.clock_joins;
  const uint32_t mine = other.order[thread.component];
  if (mine < thread.own_since) thread.own_seen = std::max(thread.own_seen, mine);
  thread.clock.join(other);
}

void Engine::join_order(Thread& thread, const VectorClock& other) {
  if (!settings.detectors) return;
  ++stats.clock_joins;
  const uint32_t mine = other[thread.component];
  if (mine < thread.own_since) thread.own_seen = std::max(thread.own_seen, mine);
  thread.clock.order.join(other);
}

uint16_t Engine::site(const Location& where, const char* operation) {
  if (!settings.detectors) return 0;
  const uint64_t key = reinterpret_cast<uintptr_t>(where.file_name()) * 0x9e3779b97f4a7c15ull ^
                       uint64_t(where.line()) << 40 ^ uint64_t(where.column()) << 24 ^
                       reinterpret_cast<uintptr_t>(operation);
  const auto [entry, fresh] = site_index.try_emplace(key, uint16_t(sites.size()));
  if (fresh) sites.push_back({where, operation});
  return entry->second;
}

std::string Engine::describe_component(uint32_t component) const {
  const Component& who = components[component];
  if (who.kind[0] == 't') return describe_thread(who.device, who.cta, who.index);
  return std::string(who.kind) + " " + std::to_string(who.index) + " of device " + std::to_string(who.device) +
         " CTA " + std::to_string(who.cta);
}

Access Engine::thread_access(const Thread& thread, const Location& where, const char* operation) {
  Access access{.component = thread.component, .time = thread.time(), .order = &thread.clock.order};
  access.site = site(where, operation);
  access.order_shared = &thread.clock.order_shared;
  access.own_accesses_ordered = true;
  access.own_since = thread.own_since;
  access.own_seen = thread.own_seen;
  access.launch = thread.cta->grid->number;
  return access;
}

void Engine::check_shared(Cta& cta, uint32_t address, size_t bytes, const Access& access) {
  if (!settings.detectors) return;
  Place place{*this, "shared memory", &cta};
  cta.shadow.access(address - cta.smem_base, bytes, access, report_fault, &place, stats.cell_checks);
}

Allocation& Engine::find_global(const void* address, size_t bytes, const char* operation, const Location& where) {
  Allocation& allocation = memory.find(address, bytes, operation, where);
  const int device = this_thread().cta->grid->launch.device;
  if (allocation.device != device && !allocation.peer_accessible)
    fail("peer",
         std::string(operation) + " of " + allocation.name + ", memory of device " + std::to_string(allocation.device) +
             " that was not made accessible to its peers",
         where);
  return allocation;
}

// NOTE: called when the running thread issues the access, even if it is performed later.
void Engine::check_global(Allocation& allocation, const void* address, size_t bytes, Access access) {
  const Thread& self = this_thread();
  access.device = uint8_t(self.cta->grid->launch.device);
  if (memory.has_multicast()) access.alias_visible = &self.clock.alias;
  access.pedantic = settings.pedantic_aliases;
  if (!deliveries.empty()) arrive_before(static_cast<const uint8_t*>(address), bytes, access);
  if (!settings.detectors) return;
  Place place{*this, allocation.name.c_str()};
  const size_t offset = static_cast<const uint8_t*>(address) - allocation.begin;
  allocation.shadow.access(offset, bytes, access, report_fault, &place, stats.cell_checks);
}

}  // namespace longcat_ops::emu
