// Indices of a thread; collectives of a warp or a CTA.
#include <algorithm>
#include <functional>

#include "emu/engine.h"
#include "emu/wgmma.h"

namespace longcat_ops::emu {
namespace {

enum CollectiveKind { kElect = 1, kShuffle, kBallot, kRedux, kMatch, kWarpSync, kRegisters };

bool same_place(const Location& a, const Location& b) {
  return a.line() == b.line() && a.column() == b.column() && a.file_name() == b.file_name();
}

}  // namespace

uint32_t thread_index() { return this_thread().index; }
uint32_t block_index() { return this_thread().cta->index; }
uint32_t grid_size() { return this_thread().cta->grid->launch.grid; }
uint32_t sm_index() { return this_thread().cta->slot; }
uint32_t dynamic_smem_base() { return this_thread().cta->smem_base; }

uint64_t globaltimer_ns() {
  this_thread().read_timer = true;
  return engine().timer_ns + engine().stats.switches;
}

void warp_collective(int kind, void* payload, const Location& where,
                     const std::function<void(std::array<void*, 32>&)>& last) {
  Thread& self = this_thread();
  Cta& cta = *self.cta;
  Collective& meeting = cta.warps[self.warp()];
  if (meeting.count == 0) {
    meeting.kind = kind;
    meeting.where = where;
  } else if (meeting.kind != kind || !same_place(meeting.where, where)) {
    fail("divergent",
         "threads of warp " + std::to_string(self.warp()) + " are at different collective instructions, " +
             describe(meeting.where) + " and here",
         where);
  }
  meeting.payload[self.lane()] = payload;
  const uint32_t lanes = std::min<uint32_t>(32, uint32_t(cta.threads.size()) - 32 * self.warp());
  if (lanes != 32) fail("divergent", "a collective in a warp of " + std::to_string(lanes) + " threads", where);
  if (++meeting.count < lanes) {
    meeting.waiters.push_back(&self);
    block("warp collective", where);
    return;
  }
  meeting.count = 0;
  last(meeting.payload);
  engine().wake_all(meeting.waiters);
}

bool elect_one(const Location& where) {
  const Thread& self = this_thread();
  warp_collective(kElect, nullptr, where, [](auto&) {});
  return self.cta->elected[self.warp()] == self.lane();
}

uint32_t shuffle(uint32_t value, Shuffle kind, int argument, const Location& where) {
  struct Payload {
    uint32_t value;
    int source;  // lane, or out of range
    uint32_t result;
  };
  const int lane = int(this_thread().lane());
  int source = argument & 31;
  if (kind == Shuffle::kXor) source = lane ^ (argument & 31);
  if (kind == Shuffle::kUp) source = lane - argument;
  Payload mine{value, source, value};
  warp_collective(kShuffle + 16 * int(kind), &mine, where, [](std::array<void*, 32>& payload) {
    for (void* entry : payload) {
      Payload& one = *static_cast<Payload*>(entry);
      if (one.source >= 0 && one.source < 32) one.result = static_cast<Payload*>(payload[one.source])->value;
    }
  });
  return mine.result;
}

uint32_t ballot(bool predicate, const Location& where) {
  struct Payload {
    bool predicate;
    uint32_t result;
  };
  Payload mine{predicate, 0};
  warp_collective(kBallot, &mine, where, [](std::array<void*, 32>& payload) {
    uint32_t votes = 0;
    for (int i = 0; i < 32; ++i) votes |= uint32_t(static_cast<Payload*>(payload[i])->predicate) << i;
    for (void* entry : payload) static_cast<Payload*>(entry)->result = votes;
  });
  return mine.result;
}

uint32_t redux(uint32_t value, bool largest, const Location& where) {
  warp_collective(kRedux + 16 * int(largest), &value, where, [largest](std::array<void*, 32>& payload) {
    uint32_t found = *static_cast<uint32_t*>(payload[0]);
    for (void* entry : payload) {
      const uint32_t one = *static_cast<uint32_t*>(entry);
      found = largest ? std::max(found, one) : std::min(found, one);
    }
    for (void* entry : payload) *static_cast<uint32_t*>(entry) = found;
  });
  return value;
}

uint32_t match_any(uint32_t value, const Location& where) {
  struct Payload {
    uint32_t value;
    uint32_t result;
  };
  Payload mine{value, 0};
  warp_collective(kMatch, &mine, where, [](std::array<void*, 32>& payload) {
    for (void* entry : payload) {
      Payload& one = *static_cast<Payload*>(entry);
      for (int i = 0; i < 32; ++i) one.result |= uint32_t(static_cast<Payload*>(payload[i])->value == one.value) << i;
    }
  });
  return mine.result;
}

void warp_sync(const Location& where) {
  warp_collective(kWarpSync, &this_thread(), where, [](std::array<void*, 32>& payload) {
    if (!engine().settings.detectors) return;
    Clock all = static_cast<Thread*>(payload[0])->clock;
    for (int i = 1; i < 32; ++i) all.join(static_cast<Thread*>(payload[i])->clock);
    engine().stats.clock_joins += 32;
    for (void* entry : payload) {
      Thread& thread = *static_cast<Thread*>(entry);
      thread.clock = all;
      thread.tick();
    }
  });
}

static void join_barrier(uint32_t id, uint32_t threads, bool wait, const Location& where) {
  Thread& self = this_thread();
  NamedBarrier& barrier = self.cta->named[id];
  if (barrier.count > 0 && barrier.expected != threads)
    fail("named-barrier",
         "barrier " + std::to_string(id) + " is used for " + std::to_string(barrier.expected) + " and for " +
             std::to_string(threads) + " threads",
         where);
  barrier.expected = threads;
  if (engine().settings.detectors) {
    barrier.arriving.join(self.clock);
    self.tick();
  }
  if (wait) barrier.waiters.push_back(&self);
  if (++barrier.count < threads) {
    if (wait) block("named barrier", where);
    return;
  }
  for (Thread* thread : barrier.waiters) {
    engine().join(*thread, barrier.arriving);
    if (thread != &self) engine().wake(thread);
  }
  barrier.waiters.clear();
  barrier.arriving.clear();
  barrier.count = 0;
}

void sync_threads(const Location& where) {
  maybe_yield(where);
  join_barrier(0, uint32_t(this_thread().cta->threads.size()), true, where);
}

void named_barrier(uint32_t id, uint32_t threads, bool wait, const Location& where) {
  maybe_yield(where);
  if (id > 15) fail("named-barrier", "there is no barrier " + std::to_string(id), where);
  if (threads == 0 || threads % 32 != 0 || threads > (this_thread().cta->threads.size() + 31) / 32 * 32)
    fail("named-barrier", "a barrier of " + std::to_string(threads) + " threads", where);
  join_barrier(id, threads, wait, where);
}

void spin_pause(const Location& where) {
  Thread& self = this_thread();
  Engine& machine = engine();
  machine.note_poll(where);
  if (!self.looked_at.empty() && machine.events != self.seen_events) {
    machine.wake(&self);
    block("ready", where);
  } else {
    machine.spinning.push_back(&self);
    block("spin loop", where);
  }
  self.looked_at.clear();
}

// A CTA has the registers that its launch was given: warps can take only what others give back.
void set_max_registers(uint32_t count, bool increase, const Location& where) {
  Thread& self = this_thread();
  Cta& cta = *self.cta;
  uint32_t& current_count = cta.warp_registers[self.warp()];
  if (increase ? count < current_count : count > current_count)
    fail("setmaxnreg",
         std::string(increase ? "inc" : "dec") + " to " + std::to_string(count) + " from " +
             std::to_string(current_count) + " registers",
         where);
  // NOTE: kind includes the count, so threads of a warp that ask for different numbers diverge.
  warp_collective(kRegisters + 16 * int(count), nullptr, where, [&](auto&) {
    if (increase) return;
    cta.free_registers += 32 * int64_t(current_count - count);
    current_count = count;
    engine().wake_all(cta.register_waiters);
  });
  while (increase && current_count < count) {
    const int64_t needed = 32 * int64_t(count - current_count);
    if (cta.free_registers >= needed) {
      cta.free_registers -= needed;
      current_count = count;
    } else {
      cta.register_waiters.push_back(&self);
      block("setmaxnreg.inc", where);
    }
  }
}

void check_exit(const Thread& thread) {
  const Location where = thread.blocked_at;  // roughly: the end of a kernel has no location
  check_bulk_reads_done(thread);
  if (!thread.wgmma->in_flight.empty())
    fail("exit", "a thread ends without having waited for its wgmma", thread.wgmma->in_flight.front().where);
  Cta& cta = *thread.cta;
  if (cta.live_threads > 1) return;
  if (cta.copies_in_flight > 0) fail("exit", "a CTA ends while copies to its shared memory are in flight", where);
  check_foreign_done(cta, where);
  for (size_t warp = 0; warp < cta.warp_registers.size(); ++warp)
    if (cta.warp_registers[warp] != cta.warp_registers[warp / 4 * 4])
      fail("setmaxnreg", "warps of one warpgroup have different register counts", where);
}

}  // namespace longcat_ops::emu
