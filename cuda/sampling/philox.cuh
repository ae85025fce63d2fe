// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11), as the CPU kernels and the
// reference have it: numbers by counter, so a draw depends on its seed, its token and its purpose alone.
#pragma once

#include "ptx/ptx.cuh"

namespace longcat_ops::sampling {

// What a number of one token decides.
enum class Purpose : uint32_t {
  kTarget = 0,    // a draw from the target's distribution
  kDraft = 1,     // a draw of a draft
  kAccept = 2,    // whether a draft is accepted
  kResidual = 3,  // a draw in place of a draft that is not
};

// In [0, 1), of 53 bits.
LC_DEVICE double uniform(int64_t seed, uint32_t token_number, Purpose purpose) {
  uint32_t a = token_number, b = static_cast<uint32_t>(purpose), c = 0, d = 0;
  uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
  LC_NO_UNROLL
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{0xD2511F53} * a, second = uint64_t{0xCD9E8D57} * c;
    a = static_cast<uint32_t>(second >> 32) ^ b ^ low;
    b = static_cast<uint32_t>(second);
    c = static_cast<uint32_t>(first >> 32) ^ d ^ high;
    d = static_cast<uint32_t>(first);
    low += 0x9E3779B9;
    high += 0xBB67AE85;
  }
  return static_cast<double>((uint64_t{a >> 5} << 26) + (b >> 6)) * 0x1p-53;
}

}  // namespace longcat_ops::sampling
