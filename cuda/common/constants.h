// Numbers that kernels, launchers, checks and CPU kernels agree on.
#pragma once

#include <cstdint>

namespace longcat_ops {

constexpr int64_t kQuantBlock = 128;  // columns under one activation scale; rows and columns under one weight scale
constexpr int64_t kMaxExperts = 1024;
constexpr int64_t kMaxTopK = 32;  // choices of a token: kernels have a lane for each

constexpr int kWarpLanes = 32;
constexpr int kMaxBlockSmem = 227 * 1024;  // bytes of shared memory that a block may have on sm_90
constexpr int kH100Sms = 132;              // of an H100 SXM

// A block that shares its SM with another begins where that one's dynamic shared memory and 1 KB of the driver's end.
// Multiples of 1024 keep every block where the pattern of a 128-byte swizzle starts anew.
constexpr int kSmemUnit = 1024;
constexpr int round_smem(int bytes) { return (bytes + kSmemUnit - 1) / kSmemUnit * kSmemUnit; }

// SMs to plan for; the emulator counts as a small device, so that small tests reach what large launches do.
#ifdef LC_EMULATE
constexpr int kTypicalSms = 1;
#else
constexpr int kTypicalSms = kH100Sms;
#endif

// Clusters that are resident at once, of blocks with an SM each, where nobody has asked the driver. SMs come in pairs,
// and at most 18 in a GPC, so four clusters of 4 to a GPC: 66 pairs and 32 clusters of 4 on an H100.
constexpr int typical_clusters(int sms, int size) {
  const int clusters = size < 4 ? sms / size : sms * 32 / (kH100Sms * size / 4);
  return clusters > 1 ? clusters : 1;
}
static_assert(typical_clusters(kH100Sms, 2) == 66 && typical_clusters(kH100Sms, 4) == 32);

}  // namespace longcat_ops
