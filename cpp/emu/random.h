// The only source of randomness: seeded, so that a run can be repeated.
#pragma once

#include <cstdint>

namespace longcat_ops::emu {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 0x1234567ull) {
    if (state_ == 0) state_ = 1;
    for (int i = 0; i < 8; ++i) next();
  }

  uint64_t next() {  // xorshift64
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  uint32_t below(uint64_t count) { return uint32_t(next() % count); }
  bool one_in(uint32_t count) { return below(count) == 0; }

 private:
  uint64_t state_;
};

}  // namespace longcat_ops::emu
