// exp without a library call or a fused multiply-add: compilers vectorise it, and every instruction set gives the same
// bits. In float32: within 2 ulp; below -104 it is 0, above 89 inf, NaN stays NaN. Not the exp of the CUDA kernels
// (cuda/device/math.cuh), which is built on fused multiply-adds.
#pragma once

#include <bit>

#include "cpu/float_formats.h"

namespace longcat_ops::cpu {

LC_INLINE float exp_f32(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer that lies in the low bits
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  const float shifted = x * 1.44269504f + kRound;
  const int32_t n = static_cast<int32_t>(float_bits(shifted) - float_bits(kRound));
  const float whole = shifted - kRound;
  // ln 2 in two parts, the first so short that its product with n is exact.
  const float r = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  float p = 1.9875691500e-4f;  // minimax of (e^r - 1 - r) / r^2 on [-ln 2 / 2, ln 2 / 2] (Cephes, expf)
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float y = p * (r * r) + r + 1.0f;
  const int32_t half = n / 2;  // in two steps, so that subnormal results and 2^128 are reached
  return y * bits_float(static_cast<uint32_t>(half + 127) << 23) *
         bits_float(static_cast<uint32_t>(n - half + 127) << 23);
}

// exp in float64 of x <= 0, within 2 ulp where it is normal; below -746 it is 0.
LC_INLINE double exp_f64(double x) {
  constexpr double kRound = 0x1.8p52;  // adding it rounds to an integer that lies in the low bits
  x = x < -746.0 ? -746.0 : x;
  const double shifted = x * 0x1.71547652b82fep0 + kRound;
  const uint64_t n = std::bit_cast<uint64_t>(shifted) - std::bit_cast<uint64_t>(kRound) + 2048;  // not negative
  const double whole = shifted - kRound;
  // ln 2 in two parts, the first so short that its product with n is exact.
  const double r = (x - whole * 0x1.62e42feep-1) - whole * 0x1.a39ef35793c76p-33;
  double p = 1.0 / 6227020800;  // Taylor: r^14 / 14! is below 2^-57 on [-ln 2 / 2, ln 2 / 2]
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  const double y = p * (r * r) + r + 1.0;
  const uint64_t half = n >> 1;  // in two steps, so that subnormal results are reached
  return y * std::bit_cast<double>((half - 1) << 52) * std::bit_cast<double>((n - half - 1) << 52);
}

// ln of x >= 1 in float64, within 2^-53 (5 + ln x): 2 ulp of exp, roundings of the last product and sum. 0 of 1.
LC_INLINE double log_f64(double x) {
  // Start: the bits of x are linear between powers of 2, where log2 is at most 0.0861 above. Halley's steps for
  // exp(y) = x turn an error of d into one of d^3 / 12: 0.06, 2e-5, 5e-16, 0.
  const double steps = static_cast<double>(std::bit_cast<int64_t>(x) - std::bit_cast<int64_t>(1.0));
  double y = steps * 0x1p-52 * 0x1.62e42fefa39efp-1;
  for (int i = 0; i < 3; ++i) {
    const double ratio = x * exp_f64(-y);
    y += 2 * (ratio - 1) / (ratio + 1);
  }
  return y;
}

LC_INLINE float silu(float v) { return v / (1.0f + exp_f32(-v)); }

}  // namespace longcat_ops::cpu
