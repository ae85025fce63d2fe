// The two mbarriers that hand over a stage of a ring (device/pipeline.cuh). Plain C++, so that layouts can include it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace longcat_ops::device {

// Two mbarriers.
struct BarrierPair {
  uint64_t full;   // completed by producers
  uint64_t empty;  // completed by consumers
};

constexpr uint32_t kBarrierPairBytes = sizeof(BarrierPair);
constexpr uint32_t kEmptyOffset = offsetof(BarrierPair, empty);
static_assert(offsetof(BarrierPair, full) == 0);

}  // namespace longcat_ops::device
