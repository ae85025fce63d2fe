// Constants that kernels, launchers, checks and CPU kernels share.
#pragma once

#include <cstdint>

namespace longcat_ops {

constexpr int64_t kQuantBlock = 128;  // columns per activation scale; rows and columns per weight scale
constexpr int64_t kMaxExperts = 1024;
constexpr int64_t kMaxReplicas = 1024;  // slots of an expert, at most one a rank
constexpr int64_t kMaxTopK = 32;        // choices per token: kernels give each a lane

constexpr int kWarpLanes = 32;
constexpr int kMaxBlockSmem = 227 * 1024;  // most bytes of shared memory per block on sm_90
constexpr int kH100Sms = 132;              // SMs of an H100 SXM

// A second block on an SM begins behind the first one's dynamic shared memory and 1 KB that the driver reserves.
// Multiples of 1024 start every block at a period of the 128-byte swizzle.
constexpr int kSmemUnit = 1024;
constexpr int round_smem(int bytes) { return (bytes + kSmemUnit - 1) / kSmemUnit * kSmemUnit; }

// SMs to plan for. The emulator poses as a small device, so that small tests take the paths of large launches.
#ifdef LC_EMULATE
constexpr int kTypicalSms = 1;
#else
constexpr int kTypicalSms = kH100Sms;
#endif

// Resident clusters of blocks that take an SM each, without asking the driver. SMs come in pairs, at most 18 to a GPC,
// so a GPC holds four clusters of 4: an H100 holds 66 pairs and 32 clusters of 4.
constexpr int typical_clusters(int sms, int size) {
  const int clusters = size < 4 ? sms / size : sms * 32 / (kH100Sms * size / 4);
  return clusters > 1 ? clusters : 1;
}
static_assert(typical_clusters(kH100Sms, 2) == 66 && typical_clusters(kH100Sms, 4) == 32);

}  // namespace longcat_ops
