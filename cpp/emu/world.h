// The emulated machine: devices with memory and one stream each, which run at the same time. Kernels are host functions
// written against ptx/ptx.cuh.
//
//   emu::World world(seed, emu::Policy::kRandom);
//   world.register_memory(x.data(), x.size(), 0, "x");
//   world.launch({.grid = 4, .block = 128, .smem_bytes = 1024, .body = [=] { my_kernel(params); }});
//   world.synchronize();  // runs everything; throws emu::Error at the first fault
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "emu/error.h"

namespace longcat_ops::emu {

// When asynchronous work (copies, wgmma) completes: at random, before threads go on, or only when no thread can run.
enum class Policy { kRandom, kEager, kLazy };

// Arithmetic of wgmma. kExact: one rounding per instruction. kHopper: products and accumulator are aligned and cut as
// in the tensor cores of an H100 (13 fraction bits for e4m3).
enum class MmaMode { kExact, kHopper };

struct Settings {
  MmaMode mma_mode = MmaMode::kExact;
  // Happens-before, proxy, swizzle and initialisation checks; the protocol checks (mbarrier counts, bounds, alignment,
  // divergence, deadlock) are always on.
  bool detectors = true;
  // CTAs of one launch that run at the same time; larger grids run in waves. A kernel that waits for another of its
  // CTAs needs its whole grid resident.
  uint32_t max_resident_ctas = 8;
  // The letter of the ISA: accesses to the same memory through its multicast and through its own address need a
  // fence.proxy.alias between them. Otherwise a release and an acquire at sys scope are enough, as libraries assume.
  bool pedantic_aliases = false;
};

struct Launch {
  int device = 0;
  uint32_t grid = 1;
  uint32_t block = 128;
  uint32_t cluster = 1;  // CTAs that run together and reach each other's shared memory; the grid is a multiple
  uint32_t smem_bytes = 0;
  uint32_t registers_per_thread = 168;  // what setmaxnreg starts from
  bool dependent_launch = false;        // programmatic dependent launch: may start early after the launch before it
  std::function<void()> body;           // runs once for every thread; copied
  const char* name = "kernel";          // for reports
};

struct Stats {
  uint64_t switches = 0;     // fiber switches
  uint64_t async_steps = 0;  // pieces of asynchronous work
  uint64_t cell_checks = 0;  // shadow cells looked at
  uint64_t clock_joins = 0;
  uint64_t mma = 0;           // wgmma instructions of whole warpgroups
  uint64_t early_starts = 0;  // CTAs started before the preceding launch was complete
};

struct Engine;

class World {
 public:
  explicit World(uint64_t seed = 1, Policy policy = Policy::kRandom, Settings settings = {});
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  // Device memory between red zones, filled with 0xff bytes. Reading it before it was written is an error unless
  // initialised: write it on the host, then pass true or call mark_initialised.
  void* alloc(size_t bytes, int device, const char* name, bool initialised = false);
  template <class T>
  T* alloc_array(size_t count, int device, const char* name, bool initialised = false) {
    return static_cast<T*>(alloc(count * sizeof(T), device, name, initialised));
  }

  // Host memory that stands for device memory; the caller keeps it alive. A region inside a registered one changes
  // nothing; otherwise older regions that it overlaps are forgotten. Not initialised: it is filled with `filler`.
  void register_memory(void* memory, size_t bytes, int device, const char* name, bool initialised = true,
                       uint8_t filler = 0xff);
  void unregister_memory(void* memory);
  void mark_initialised(const void* memory, size_t bytes);

  // Lets kernels of all devices access an allocation, given by its start; without this only its own device may.
  void make_peer_accessible(void* memory);
  // An address range that stands for one allocation of each member device, all of one size, given by their starts.
  // Only multimem operations of kernels on these devices may use it. It ends with the first of its members.
  void* bind_multicast(const std::vector<void*>& members, const char* name);

  // Queued on the device's stream.
  void launch(Launch launch);
  // Runs all launches to their end. After an error the world is of no further use.
  void synchronize();

  Settings& settings();
  const Stats& stats() const;

 private:
  std::unique_ptr<Engine> engine_;
};

}  // namespace longcat_ops::emu
