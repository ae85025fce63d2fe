// Releases and acquires: what a strong write makes known, and to whom.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "emu/clock.h"
#include "emu/error.h"
#include "emu/ops.h"

namespace longcat_ops::emu {

struct Thread;

// Whose release it was, and how far it reaches.
struct Reach {
  Scope scope = Scope::kSys;
  int device = 0;
  uint64_t cta = 0;

  bool operator==(const Reach&) const = default;
};

// What one write makes known to those who acquire it.
struct Release {
  VectorClock order;
  VectorClock alias;
  Reach reach;
};

// What the writes to an address have left there. A read-modify-write adds to it, a store replaces it.
struct SyncVariable {
  VectorClock order;
  VectorClock alias;
  std::vector<Reach> reaches;
};

inline uint8_t strength(Scope scope) { return uint8_t(1 + int(scope)); }
inline bool is_release(Order order) { return order == Order::kRelease || order == Order::kAcqRel; }
inline bool is_acquire(Order order) { return order == Order::kAcquire || order == Order::kAcqRel; }

// The release of a strong write by this thread; null: none. A releasing write first delivers all writes that it covers.
std::shared_ptr<const Release> make_release(Thread& self, Order order, Scope scope);
void publish(const void* address, const std::shared_ptr<const Release>& release, bool read_modify_write);
void observe(const void* address, Order order, Scope scope, const Location& where);

// Notes a look at what others change: spin_pause waits for changes after the first look. Null: an mbarrier.
void look(Thread& self, const void* address);

}  // namespace longcat_ops::emu
