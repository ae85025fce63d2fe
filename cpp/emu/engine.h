// The emulator's state: threads, CTAs, launches, scheduler. Internal to cpp/emu.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "emu/barriers.h"
#include "emu/clock.h"
#include "emu/cluster.h"
#include "emu/fiber.h"
#include "emu/memory_map.h"
#include "emu/ops.h"
#include "emu/random.h"
#include "emu/sync.h"
#include "emu/world.h"

namespace longcat_ops::emu {

struct Cta;
struct Grid;
struct BulkCopy;
struct Delivery;
struct WarpgroupUnit;
struct WgmmaThreadState;

// Work of the async proxy that happens later, in one or several steps.
struct AsyncOperation {
  virtual ~AsyncOperation() = default;
  virtual bool step() = 0;  // true: finished
};

// A thread's bulk groups: committed ones in order, then the open one. Most threads have none, and an empty vector needs
// no memory.
struct BulkGroups {
  std::vector<std::vector<std::shared_ptr<BulkCopy>>> committed;
  std::vector<std::shared_ptr<BulkCopy>> open;
  uint32_t first_number = 1;           // of the front of `committed`; group numbers are times on the two components
  uint32_t start_number = 1;           // of the thread's first group
  uint32_t read_component = kNobody;   // reads of the source
  uint32_t write_component = kNobody;  // writes of the destination
  bool waiting = false;

  uint32_t open_number() const { return first_number + uint32_t(committed.size()); }
};

struct Thread {
  Thread(Cta* cta_, uint32_t index_, uint32_t component_);
  ~Thread();

  uint32_t time() const { return clock.order[component]; }
  void tick() { clock.order.raise(component, time() + 1); }  // after a release: later accesses are not covered by it
  uint32_t warp() const { return index / 32; }
  uint32_t lane() const { return index % 32; }

  Cta* cta;
  uint32_t index;
  uint32_t component;
  Fiber fiber;
  Clock clock;
  uint32_t own_since = 0;  // accesses of the component before this time are another thread's, of an earlier CTA
  uint32_t own_seen = 0;   // up to this time they are known to have happened before
  bool done = false;
  bool waited = false;  // for the launch before its own, by grid_dependency_wait
  const char* blocked_on = nullptr;
  Location blocked_at;

  BulkGroups bulk;
  std::unique_ptr<WgmmaThreadState> wgmma;
  VectorClock fence_release;  // what a fence.acq_rel covers, published by later relaxed writes
  VectorClock fence_alias;
  std::optional<Scope> fence_scope;
  VectorClock pending_acquire;  // what relaxed reads saw, acquired by a later fence.acq_rel
  VectorClock pending_alias;
  bool has_pending_acquire = false;
  Scope pending_scope = Scope::kCta;    // what that fence must reach
  VectorClock shared_release;           // what a fence.release of the CTA's own shared memory covers
  Clock shared_pending;                 // what relaxed waits saw, acquired by a later fence.acquire of shared memory
  bool cluster_arrived = false;         // and not yet waited
  uint32_t cluster_phase = 0;           // of that arrival
  uint32_t remote_component = kNobody;  // of accesses to other CTAs' shared memory
  uint32_t remote_time = 0;
  uint32_t remote_since = 0;           // own time at which remote_time began
  uint32_t shown_component = kNobody;  // of fence.mbarrier_init
  uint32_t shown_time = 0;
  std::vector<const uint8_t*> looked_at;  // since its last pause; none or null: anything
  uint64_t seen_events = 0;               // Engine::events at the first of these looks
  bool read_timer = false;
  uint32_t failed_tries = 0;
};

struct Cta {
  Cta(Grid* grid_, std::shared_ptr<Cluster> cluster_, uint32_t index_, uint32_t slot_);
  ~Cta();

  uint8_t* shared(uint32_t address, size_t bytes, const char* operation, const Location& where);  // checks bounds
  // Descriptors hold the low bits of an address.
  uint32_t own_address(uint32_t low) const { return cluster->window(rank) | low; }

  Grid* grid;
  std::shared_ptr<Cluster> cluster;
  uint32_t index;
  uint32_t rank;  // in the cluster
  uint32_t slot;
  uint32_t smem_base;
  std::vector<uint8_t> smem;
  ShadowMemory shadow;
  std::vector<std::unique_ptr<Thread>> threads;
  uint32_t live_threads;
  uint32_t start_component = 0;  // of the CTA's start, in clusters
  uint32_t start_time = 0;
  std::vector<ForeignAccess> foreign;
  std::vector<ForeignArrival> foreign_arrivals;
  std::vector<uint64_t> flags;    // Engine::sync has these addresses within its shared memory
  uint32_t copies_in_flight = 0;  // that write this CTA's shared memory
  bool triggered = false;         // griddepcontrol.launch_dependents
  bool waited = false;            // one of its threads, for the launch before
  BarrierTable barriers;
  std::array<NamedBarrier, 16> named;
  std::vector<Collective> warps;
  std::vector<uint32_t> elected;         // leader lane of each warp
  std::vector<uint32_t> warp_registers;  // per thread
  int64_t free_registers = 0;
  std::vector<Thread*> register_waiters;
  std::vector<std::shared_ptr<WarpgroupUnit>> warpgroups;
  uint32_t next_component = 0;  // of the slot's extra components
};

// A launch on its stream.
struct Grid {
  Launch launch;
  uint16_t number = 0;
  uint32_t started = 0;
  uint32_t running = 0;
  uint32_t not_triggered = 0;     // CTAs that have neither triggered nor exited
  uint32_t writes_in_flight = 0;  // bulk stores that outlive their CTA
  bool complete = false;
  uint32_t informed = 0;              // CTAs that triggered, or exited, after a wait for the launch before
  std::shared_ptr<Grid> predecessor;  // of a dependent launch, until it is complete and waited for
  VectorClock base;                   // what its threads know when they start
  VectorClock final;                  // what is known when it is complete
  VectorClock waited;                 // what waits for the launch before made known
  std::vector<Thread*> dependents_waiting;
};

// The current owner of a component of the clocks. Slots of resident CTAs own ranges of them and pass them on. Times
// only grow, so a later owner's access is never taken for an earlier one's.
struct Component {
  uint32_t last_time = 0;
  const char* kind = "?";
  int device = 0;
  uint32_t cta = 0;
  uint32_t index = 0;
};
struct Slot {
  bool free = true;
  uint32_t threads = 0;
  uint16_t launch = 0;  // of the newest owner
  uint32_t first_thread_component = 0;
  std::vector<uint32_t> extra;
};

struct Site {
  Location where;
  const char* operation;
};

struct Engine {
  Engine(uint64_t seed, Policy policy_, Settings settings_);
  ~Engine();

  // --- scheduler
  void run();
  void wake(Thread* thread) { runnable.push_back(thread); }
  void wake_all(std::vector<Thread*>& threads);
  void enqueue(std::shared_ptr<AsyncOperation> operation) { pending.push_back(std::move(operation)); }
  // Wakes spinning threads, which may have something new to see: anywhere, or in these bytes.
  void note_event();
  void note_event(const uint8_t* address, size_t bytes);
  void note_poll(const Location& where);

  // --- clocks
  uint32_t extra_component(Cta* cta, const char* kind, uint32_t index);
  void join(Thread& thread, const Clock& other);              // a barrier
  void join_order(Thread& thread, const VectorClock& other);  // an acquire: nothing for the async proxy
  uint16_t site(const Location& where, const char* operation);
  std::string describe_component(uint32_t component) const;

  // --- accesses
  Access thread_access(const Thread& thread, const Location& where, const char* operation);
  void check_shared(Cta& cta, uint32_t address, size_t bytes, const Access& access);
  void check_global(Allocation& allocation, const void* address, size_t bytes, Access access);
  // The allocation, if the running thread's device may access it.
  Allocation& find_global(const void* address, size_t bytes, const char* operation, const Location& where);

  uint64_t seed;
  Policy policy;
  Settings settings;
  Stats stats;
  Random random;
  MemoryMap memory;
  std::map<int, std::deque<std::shared_ptr<Grid>>> streams;
  std::map<int, VectorClock> completed;  // per device
  std::vector<std::unique_ptr<Cta>> ctas;
  std::vector<Slot> slots;
  std::vector<Component> components;
  std::vector<Site> sites;
  std::unordered_map<uint64_t, uint16_t> site_index;
  std::unordered_map<uint64_t, SyncVariable> sync;
  std::vector<Thread*> runnable;
  std::vector<std::shared_ptr<AsyncOperation>> pending;
  std::multimap<const uint8_t*, Delivery*> deliveries;  // those on the way, by address
  uint64_t threads_first = 0;                           // steps of threads before the next asynchronous one
  std::vector<Thread*> spinning;
  uint64_t events = 0;
  uint64_t polls = 0;
  uint64_t timer_ns = 1000;
  uint16_t launches = 0;
  bool cancelling = false;
  bool start_needed = false;
  std::unique_ptr<Error> error;

 private:
  void run_thread(size_t position);
  void run_async();
  bool choose_async();
  void when_stuck();
  void cancel_threads();
  void start_ctas();
  bool may_start_early(const Grid& grid);
  void start_cluster(Grid& grid);
  void start_cta(Grid& grid, const std::shared_ptr<Cluster>& cluster);
  uint32_t take_slot(const Grid& grid);
  void finish_ctas();
  void finish_cta(Cta& cta);
  bool finish_grids();
  std::string deadlock_report() const;
};

// The machine and the thread that run on this operating-system thread.
struct Current {
  Engine* engine = nullptr;
  Thread* thread = nullptr;
};
extern thread_local Current current;

inline Engine& engine() { return *current.engine; }
Thread& this_thread();   // outside a kernel: an error
void run_thread_body();  // entry of every fiber
void check_exit(const Thread& thread);
void check_bulk_reads_done(const Thread& thread);

// The live mbarrier at an address in the CTA's shared memory; its initialisation is known to the running thread.
MBarrier& live_barrier(Cta& cta, uint32_t address, const Location& where);

// Suspends the running thread until it is woken.
void block(const char* on, const Location& where);
// Lets others run first, now and then at random.
void maybe_yield(const Location& where);

// Runs `last` once, in the last of a warp's 32 threads to arrive; payload[lane] is what each passed.
void warp_collective(int kind, void* payload, const Location& where,
                     const std::function<void(std::array<void*, 32>& payload)>& last);

void check_alignment(uint64_t address, uint64_t alignment, const char* operation, const Location& where);

}  // namespace longcat_ops::emu
