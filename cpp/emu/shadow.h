// Shadow memory: who wrote and read each byte last, through which proxy, and whether that is ordered before an access.
//
// A cell covers 16 bytes. An access to a part of it splits it into four cells of 4 bytes, and those into bytes, so
// neighbouring small stores do not look like conflicts; a write to the whole joins the parts again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "emu/clock.h"

namespace longcat_ops::emu {

constexpr uint32_t kNobody = ~0u;
constexpr uint8_t kWeak = 0;  // strength of an access: weak, or 1 + its Scope
constexpr uint8_t kGpuStrength = 3;
constexpr uint8_t kAnySwizzle = 0xff;

struct ReadEpoch {
  uint32_t component = kNobody;
  uint32_t time = 0;
  uint16_t site = 0;
  uint8_t strength = kWeak;
  uint8_t device = 0;
  bool multicast = false;  // through a multicast address
};

struct Cell {
  uint32_t write_component = kNobody;
  uint32_t write_time = 0;
  uint16_t write_site = 0;
  uint8_t write_strength = kWeak;
  uint8_t write_device = 0;
  bool write_multicast = false;
  bool write_async = false;
  bool initialised = false;
  bool split = false;             // the parts hold the state, not this cell
  uint8_t swizzle = kAnySwizzle;  // how a tensor copy wrote it
  uint16_t read_only_launch = 0;  // launch that read it with ld.global.nc; 0: none
  ReadEpoch read;                 // the newest; older ones that it does not cover are in more_reads
  std::unique_ptr<std::vector<ReadEpoch>> more_reads;
  std::unique_ptr<Cell[]> parts;  // four

  void make_parts();
};

// One access, with all that decides whether it is allowed.
struct Access {
  uint32_t component;
  uint32_t time;
  const VectorClock* order;                    // what happened before it
  const VectorClock* async_visible = nullptr;  // access by the async proxy: the generic writes it may see
  const VectorClock* order_shared = nullptr;   // see Clock; the fault reporter looks at it
  bool write = false;
  uint8_t strength = kWeak;
  uint8_t device = 0;
  uint16_t site = 0;
  bool multicast = false;                      // through a multicast address
  const VectorClock* alias_visible = nullptr;  // accesses through the other kind of address that it may see; null: all
  bool pedantic = false;                       // also reads that a write overtakes
  bool check_initialised = false;
  bool check_swizzle = false;  // a read that expects bytes in this swizzle
  uint8_t swizzle = kAnySwizzle;
  // Threads only: the component's own accesses are ordered, unless an earlier CTA made them under the same component.
  bool own_accesses_ordered = false;
  uint32_t own_since = 0;
  uint32_t own_seen = 0;
  // A read of data that stays unwritten during the launch: one of these must cover every write.
  bool read_only = false;
  const VectorClock* launch_base = nullptr;
  const VectorClock* predecessor_final = nullptr;
  uint16_t launch = 0;

  bool before_launch(uint32_t other, uint32_t other_time) const {
    return (*launch_base)[other] >= other_time ||
           (predecessor_final != nullptr && (*predecessor_final)[other] >= other_time);
  }

  bool ordered_after(uint32_t other, uint32_t other_time) const {
    if (own_accesses_ordered && other == component) return other_time >= own_since || other_time <= own_seen;
    return (*order)[other] >= other_time;
  }
};

enum class Fault { kWriteRace, kReadRace, kScope, kAlias, kProxy, kUninitialised, kSwizzle, kReadOnly };

// Throws Error; offset: the cell's.
using FaultReporter = void (*)(void* context, Fault fault, const Access& access, const Cell& cell,
                               const ReadEpoch* read, size_t offset);

class ShadowMemory {
 public:
  ShadowMemory(size_t bytes, bool initialised) : pages_((bytes + kPageBytes - 1) / kPageBytes) {
    initialised_ = initialised;
  }

  // Checks the access, then records it. Counts the cells looked at.
  void access(size_t offset, size_t bytes, const Access& access, FaultReporter report, void* context, uint64_t& cells);
  // For runs without detectors, and for what the host writes.
  void set_initialised(size_t offset, size_t bytes);

 private:
  static constexpr size_t kCellBytes = 16;
  static constexpr size_t kPageBytes = 4096;  // pages are made when first touched

  Cell* page(size_t index);

  std::vector<std::unique_ptr<Cell[]>> pages_;
  bool initialised_;
};

}  // namespace longcat_ops::emu
