// Streams of launches: when CTAs start and end, and what their threads know about earlier work.
#include <algorithm>

#include "emu/engine.h"
#include "emu/wgmma.h"

namespace longcat_ops::emu {
namespace {

uint32_t round_up(uint32_t value, uint32_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

Thread::Thread(Cta* cta_, uint32_t index_, uint32_t component_) : cta(cta_), index(index_), component(component_) {}

Cta::Cta(Grid* grid_, std::shared_ptr<Cluster> cluster_, uint32_t index_, uint32_t slot_)
    : grid(grid_),
      cluster(std::move(cluster_)),
      index(index_),
      rank(index_ % cluster->size()),
      slot(slot_),
      smem_base(cluster->window(rank) | cluster->smem_offset),
      smem(grid_->launch.smem_bytes, 0xff),
      shadow(grid_->launch.smem_bytes, false),
      live_threads(grid_->launch.block),
      barriers(grid_->launch.smem_bytes) {
  const uint32_t warp_count = round_up(live_threads, 32) / 32;
  warps.resize(warp_count);
  for (uint32_t i = 0; i < warp_count; ++i) elected.push_back(engine().random.below(32));
  warp_registers.assign(warp_count, grid->launch.registers_per_thread);
  for (uint32_t i = 0; i * kWarpgroup < live_threads; ++i)
    warpgroups.push_back(std::make_shared<WarpgroupUnit>(this, i));
}

Cta::~Cta() = default;

uint8_t* Cta::shared(uint32_t address, size_t bytes, const char* operation, const Location& where) {
  if ((address ^ smem_base) >> Cluster::kWindowBits != 0)
    fail("out-of-bounds",
         std::string(operation) + " takes shared memory of the CTA itself, not an address elsewhere in the cluster",
         where);
  if (address < smem_base || address + bytes > smem_base + smem.size())
    fail("out-of-bounds",
         std::string(operation) + " of " + std::to_string(bytes) + " B at offset " +
             std::to_string(int64_t(address) - int64_t(smem_base)) + " of " + std::to_string(smem.size()) +
             " B of shared memory",
         where);
  return smem.data() + (address - smem_base);
}

// A slot passes from CTA to CTA of a launch, and on to launches that know the end of the one before. So the clock of a
// slot's owner also covers what earlier owners did.
uint32_t Engine::take_slot(const Grid& grid) {
  constexpr size_t kManySlots = 256;  // beyond these, any free slot
  const uint32_t threads = grid.launch.block;
  for (uint32_t i = 0; i < slots.size(); ++i) {
    Slot& slot = slots[i];
    if (!slot.free || slot.threads != threads) continue;
    const uint32_t first = slot.first_thread_component;
    if (slot.launch != grid.number && grid.base[first] < components[first].last_time && slots.size() < kManySlots)
      continue;
    slot.free = false;
    slot.launch = grid.number;
    return i;
  }
  // Each warp begins a chunk of the clocks, which its threads then share.
  const uint32_t first = round_up(uint32_t(components.size()), VectorClock::kChunk);
  components.resize(first + round_up(threads, VectorClock::kChunk));
  slots.push_back(
      {.free = false, .threads = threads, .launch = grid.number, .first_thread_component = first, .extra = {}});
  return uint32_t(slots.size() - 1);
}

uint32_t Engine::extra_component(Cta* cta, const char* kind, uint32_t index) {
  Slot& slot = slots[cta->slot];
  if (cta->next_component == slot.extra.size()) {
    // A chunk of their own keeps them out of the threads' chunks.
    const uint32_t first = round_up(uint32_t(components.size()), VectorClock::kChunk);
    components.resize(first + VectorClock::kChunk);
    for (uint32_t i = 0; i < VectorClock::kChunk; ++i) slot.extra.push_back(first + i);
  }
  const uint32_t component = slot.extra[cta->next_component++];
  components[component] = {components[component].last_time, kind, cta->grid->launch.device, cta->index, index};
  return component;
}

bool Engine::may_start_early(const Grid& grid) {
  if (!grid.launch.dependent_launch) return false;
  if (grid.predecessor == nullptr || grid.predecessor->not_triggered != 0) return false;
  if (policy == Policy::kEager) return true;
  const bool now = policy == Policy::kLazy ? runnable.empty() : random.one_in(16);
  start_needed |= !now;  // ask again
  return now;
}

void Engine::start_ctas() {
  start_needed = false;
  for (auto& [device, queue] : streams) {
    for (size_t i = 0; i < queue.size(); ++i) {
      Grid& grid = *queue[i];
      if (grid.started == 0) {
        if (i > 0 && !may_start_early(grid)) break;
        // NOTE: even if the launch before a dependent one is complete, only grid_dependency_wait says so. What that
        // launch waited for is over if all of its CTAs triggered, or exited, after their wait.
        const Grid* before = grid.predecessor.get();
        grid.base = before != nullptr ? before->base : completed[device];
        if (before != nullptr && before->informed == before->launch.grid) grid.base.join(before->waited);
      }
      const uint32_t cluster = grid.launch.cluster;
      const uint32_t resident = std::max(settings.max_resident_ctas, cluster);
      while (grid.started < grid.launch.grid && grid.running + cluster <= resident) {
        start_cluster(grid);
        if (i > 0) stats.early_starts += cluster;
      }
      if (grid.started < grid.launch.grid) break;
    }
  }
}

void Engine::start_cluster(Grid& grid) {
  const uint32_t size = grid.launch.cluster;
  const auto cluster = std::make_shared<Cluster>(grid.started / size, size, grid.launch.block);
  for (uint32_t rank = 0; rank < size; ++rank) start_cta(grid, cluster);
}

void Engine::start_cta(Grid& grid, const std::shared_ptr<Cluster>& cluster) {
  const uint32_t slot = take_slot(grid);
  auto owner = std::make_unique<Cta>(&grid, cluster, grid.started++, slot);
  Cta& cta = *owner;
  cluster->ctas[cta.rank] = &cta;
  if (cluster->size() > 1) {
    cta.start_component = extra_component(&cta, "start", 0);
    cta.start_time = components[cta.start_component].last_time + 1;
  }
  ++grid.running;
  for (uint32_t i = 0; i < grid.launch.block; ++i) {
    const uint32_t id = slots[slot].first_thread_component + i;
    Component& component = components[id];
    component = {component.last_time, "thread", grid.launch.device, cta.index, i};
    auto thread = std::make_unique<Thread>(&cta, i, id);
    thread->clock.order = grid.base;
    thread->clock.async_global = grid.base;
    if (memory.has_multicast()) thread->clock.alias = grid.base;
    thread->own_since = component.last_time + 1;
    thread->own_seen = grid.base[id];
    thread->clock.order.raise(id, thread->own_since);
    if (cluster->size() > 1) thread->clock.order.raise(cta.start_component, cta.start_time);
    thread->wgmma = std::make_unique<WgmmaThreadState>();
    thread->fiber.prepare(run_thread_body);
    runnable.push_back(thread.get());
    cta.threads.push_back(std::move(thread));
  }
  ctas.push_back(std::move(owner));
}

void Engine::finish_cta(Cta& cta) {
  Grid& grid = *cta.grid;
  auto leave_behind = [&](uint32_t component, uint32_t time) {
    components[component].last_time = std::max(components[component].last_time, time);
    grid.final.raise(component, time);
  };
  for (const auto& thread : cta.threads) {
    grid.final.join(thread->clock.order);
    leave_behind(thread->component, thread->time());
    if (thread->bulk.read_component != kNobody) {
      leave_behind(thread->bulk.read_component, thread->bulk.open_number());
      leave_behind(thread->bulk.write_component, thread->bulk.open_number());
    }
    if (thread->remote_component != kNobody) leave_behind(thread->remote_component, thread->remote_time);
    if (thread->shown_component != kNobody) leave_behind(thread->shown_component, thread->shown_time);
  }
  for (const MBarrier& barrier : cta.barriers.all()) leave_behind(barrier.component, barrier.copy_time());
  for (const auto& unit : cta.warpgroups) leave_behind(unit->component, unit->first_time + uint32_t(unit->issued));
  if (cta.cluster->size() > 1) leave_behind(cta.start_component, cta.start_time);
  cta.cluster->ctas[cta.rank] = nullptr;
  for (const uint64_t address : cta.flags) sync.erase(address);
  slots[cta.slot].free = true;
  --grid.running;
  if (!cta.triggered) {
    --grid.not_triggered;
    grid.informed += cta.waited;
  }
  start_needed = true;
}

void Engine::finish_ctas() {
  for (size_t i = 0; i < ctas.size();) {
    if (ctas[i]->live_threads > 0) {
      ++i;
      continue;
    }
    finish_cta(*ctas[i]);
    ctas[i] = std::move(ctas.back());
    ctas.pop_back();
  }
}

bool Engine::finish_grids() {
  bool any = false;
  for (auto& [device, queue] : streams) {
    for (const auto& grid : queue) {
      if (grid->complete || grid->started < grid->launch.grid || grid->running > 0 || grid->writes_in_flight > 0)
        continue;
      grid->complete = any = true;
      wake_all(grid->dependents_waiting);
    }
    while (!queue.empty() && queue.front()->complete) {
      completed[device].join(queue.front()->final);
      queue.front()->predecessor.reset();
      queue.pop_front();
      start_needed = true;
    }
  }
  return any;
}

void grid_dependency_launch(const Location& where) {
  Cta& cta = *this_thread().cta;
  maybe_yield(where);
  if (cta.triggered) return;
  cta.triggered = true;
  --cta.grid->not_triggered;
  cta.grid->informed += this_thread().waited;
  engine().start_needed = true;
}

void grid_dependency_wait(const Location& where) {
  Thread& self = this_thread();
  Grid* before = self.cta->grid->predecessor.get();
  if (before == nullptr) return;
  while (!before->complete) {
    before->dependents_waiting.push_back(&self);
    block("griddepcontrol.wait", where);
  }
  self.waited = self.cta->waited = true;
  if (!engine().settings.detectors) return;
  self.cta->grid->waited.join(before->final);
  engine().join_order(self, before->final);
  self.clock.async_global.join(before->final);
  if (engine().memory.has_multicast()) self.clock.alias.join(before->final);
}

}  // namespace longcat_ops::emu
