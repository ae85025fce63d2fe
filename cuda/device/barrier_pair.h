// What a stage of a ring has in shared memory to be handed over by (device/pipeline.cuh). Plain C++, for layouts.
#pragma once

#include <cstddef>
#include <cstdint>

namespace longcat_ops::device {

// Two mbarriers.
struct BarrierPair {
  uint64_t full;   // completed by the producers
  uint64_t empty;  // by the consumers
};

constexpr uint32_t kBarrierPairBytes = sizeof(BarrierPair);
constexpr uint32_t kEmptyOffset = offsetof(BarrierPair, empty);
static_assert(offsetof(BarrierPair, full) == 0);

}  // namespace longcat_ops::device
