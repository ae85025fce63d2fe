// Thread-block clusters: CTAs that start together, share a barrier and reach each other's shared memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "emu/clock.h"
#include "emu/error.h"

namespace longcat_ops::emu {

struct Cta;
struct Thread;
struct Access;

// What the arrivals of one phase make known.
struct ClusterPhase {
  Clock clock;                            // to all
  std::vector<VectorClock> async_global;  // by rank: a CTA's own fences serve only itself

  explicit ClusterPhase(size_t ranks) : async_global(ranks) {}
};

struct Cluster {
  Cluster(uint32_t index_, uint32_t size, uint32_t block);

  uint32_t size() const { return uint32_t(ctas.size()); }
  uint32_t window(uint32_t rank) const { return (rank ^ key) << kWindowBits; }
  void arrive(Thread& thread, bool release);
  void thread_exits(const Thread& thread);
  void complete_if_done();
  // For a deadlock report: which threads of this CTA the barrier lacks; empty if no thread waits.
  std::string describe_waiting(const Cta& cta) const;

  static constexpr uint32_t kWindowBits = 24;  // of a CTA's shared memory within the cluster's addresses

  uint32_t index;          // in the grid
  std::vector<Cta*> ctas;  // by rank; null when ended
  uint32_t key = 0;        // permutes the windows, so that no kernel can rely on their order
  uint32_t smem_offset;    // of dynamic shared memory within every window
  uint32_t live_threads;   // that have not ended
  uint32_t missing;        // live threads that have not arrived in this phase
  uint32_t phase = 0;      // phases completed
  ClusterPhase arriving;   // of the phase in progress
  ClusterPhase complete;   // of the newest complete phase
  std::vector<Thread*> waiters;
};

// Accesses to a CTA's shared memory by others than its threads: the newest of each component.
struct ForeignAccess {
  uint32_t component;
  uint32_t time;
  uint16_t site;
};

// An arrival from another CTA at an mbarrier of this one. A thread that sees its phase complete knows that it is over,
// whatever it releases. The newest of each component and mbarrier.
struct ForeignArrival {
  ForeignAccess access;
  uint32_t address;  // of the mbarrier
  uint32_t phase;
};

// The CTA of the running thread's cluster at an address of shared::cluster. Throws unless it runs and has the bytes.
Cta& cluster_target(uint32_t address, uint32_t bytes, const char* operation, const Location& where);
// The CTA of this rank, as the target of `operation`.
Cta& cluster_peer(uint32_t rank, const char* operation, const Location& where);
// Notes an access to the target's shared memory that must be over when the target ends.
void note_foreign(Cta& target, const Access& access);
void note_foreign_arrival(Cta& target, const Access& access, uint32_t address, uint32_t phase);
// Throws if an access to the shared memory of a CTA may not be over when its last thread ends.
void check_foreign_done(Cta& cta, const Location& where);
// An access by the running thread to shared memory of its own or of another CTA.
Access cluster_access(Cta& target, const Location& where, const char* operation);

}  // namespace longcat_ops::emu
