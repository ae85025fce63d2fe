// Which replica of an expert a token takes: the CPU kernel and the CUDA kernel must agree on it.
#pragma once

#include <cstdint>

namespace longcat_ops {

// The finaliser of MurmurHash3 (32 bits) of token + layer * 0x9e3779b9, modulo 2^32. For one layer it is a bijection of
// token numbers, so tokens spread evenly; layers lie far apart.
constexpr uint32_t replica_hash(uint32_t token, uint32_t layer) {
  uint32_t h = token + layer * 0x9e3779b9u;
  h = (h ^ h >> 16) * 0x85ebca6bu;
  h = (h ^ h >> 13) * 0xc2b2ae35u;
  return h ^ h >> 16;
}
static_assert(replica_hash(0, 0) == 0 && replica_hash(1, 0) == 0x514e28b7u);

}  // namespace longcat_ops
