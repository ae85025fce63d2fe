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

// SMs to plan for; the emulator counts as a small device, so that small tests reach what large launches do.
#ifdef LC_EMULATE
constexpr int kTypicalSms = 1;
#else
constexpr int kTypicalSms = kH100Sms;
#endif

}  // namespace longcat_ops
