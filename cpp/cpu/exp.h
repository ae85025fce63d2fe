// exp in float32 without a library call or a fused multiply-add: compilers vectorise it, and every instruction set
// gives the same bits. Within 2 ulp; below -104 it is 0, above 89 inf, NaN stays NaN. Not the exp of the CUDA kernels
// (cuda/device/math.cuh), which is built on fused multiply-adds.
#pragma once

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

LC_INLINE float silu(float v) { return v / (1.0f + exp_f32(-v)); }

}  // namespace longcat_ops::cpu
