// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11): numbers by counter, without
// state, so that a draw depends on its seed, its token and its purpose alone. The reference has the same purposes.
#pragma once

#include <array>
#include <cstdint>

namespace longcat_ops::cpu {

// What a number of one token decides.
enum class Purpose : uint32_t {
  kTarget = 0,    // a draw from the target's distribution
  kDraft = 1,     // a draw of a draft
  kAccept = 2,    // whether a draft is accepted
  kResidual = 3,  // a draw in place of a draft that is not
};

inline std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{0xD2511F53} * counter[0], second = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(second >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(second),
               static_cast<uint32_t>(first >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(first)};
    key = {key[0] + 0x9E3779B9, key[1] + 0xBB67AE85};
  }
  return counter;
}

// In [0, 1), of 53 bits.
inline double uniform(int64_t seed, uint32_t token_number, Purpose purpose) {
  const uint64_t key = static_cast<uint64_t>(seed);
  const auto words = philox4x32_10({token_number, static_cast<uint32_t>(purpose), 0, 0},
                                   {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)});
  return static_cast<double>((uint64_t{words[0] >> 5} << 26) + (words[1] >> 6)) * 0x1p-53;
}

}  // namespace longcat_ops::cpu
