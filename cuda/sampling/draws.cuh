// How sequences draw: their settings, and the numbers of their tokens.
#pragma once

#include "device/vector_io.cuh"
#include "sampling/philox.cuh"

namespace longcat_ops::sampling {

// Each pointer [sequences].
struct Draws {
  const int64_t* seeds;
  const int32_t* lengths;
  const float* temperature;  // greedy unless positive and finite
  const int32_t* top_k;
  const float* top_p;
};

LC_DEVICE bool is_sampled(float temperature) { return temperature > 0 && temperature < device::bits_float(0x7f800000); }

struct Cuts {
  int32_t top_k;
  float top_p;
  LC_DEVICE bool by_count(uint32_t width) const { return top_k > 0 && static_cast<uint32_t>(top_k) < width; }
  LC_DEVICE bool by_mass() const { return top_p < 1; }
};

LC_DEVICE Cuts cuts_of(const Draws& draws, int64_t b) {
  return {ptx::load_global(draws.top_k + b), ptx::load_global(draws.top_p + b)};
}

// The number of row j of sequence b.
LC_DEVICE double number_of(const Draws& draws, int64_t b, int64_t j, Purpose purpose) {
  const uint32_t length = static_cast<uint32_t>(ptx::load_global(draws.lengths + b));
  return uniform(ptx::load_global(draws.seeds + b), length + 1 + static_cast<uint32_t>(j), purpose);
}

}  // namespace longcat_ops::sampling
