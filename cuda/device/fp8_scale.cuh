// The rule of quantisation, once for every kernel: s = max(amax, 1e-4) / 448, q = e4m3(x / s), both divisions IEEE.
#pragma once

#include "device/vector_io.cuh"
#include "ptx/ptx.cuh"

namespace longcat_ops::device {

constexpr float kMaxE4M3 = 448.0f;
constexpr uint32_t kMinAmaxBits = 0x38d1b717u;  // 1e-4f
constexpr uint32_t kAbsMask = 0x7fffffffu;
constexpr uint32_t kInfBits = 0x7f800000u;
constexpr uint32_t kNanBits = 0x7fc00000u;

// NOTE: amax is taken over the bits of |x| as integers: these order like the values and put NaN above inf, so a NaN
// propagates, and the order of reduction cannot matter.
LC_DEVICE uint32_t max_abs_bits(const float (&values)[kChunk], uint32_t start = 0) {
  uint32_t result = start;
  LC_UNROLL
  for (uint32_t i = 0; i < kChunk; ++i) {
    const uint32_t bits = float_bits(values[i]) & kAbsMask;
    result = bits > result ? bits : result;
  }
  return result;
}

struct Fp8Scale {
  float value;    // s
  float divisor;  // s, but 0 where s is inf
  float inverse;  // 1 / s
};

LC_DEVICE Fp8Scale make_fp8_scale(uint32_t amax_bits) {
  const uint32_t bits = amax_bits > kMinAmaxBits ? amax_bits : kMinAmaxBits;
  const float quotient = ptx::divide_rn(bits_float(bits), kMaxE4M3);
  const float value = bits > kInfBits ? bits_float(kNanBits) : quotient;
  return {value, bits == kInfBits ? 0.0f : value, ptx::divide_rn(1.0f, value)};
}

// x / s, equal to IEEE division wherever e4m3 can tell: same sign, same value from 2^-11 up, below it some value that
// rounds to zero too.
// NOTE: one reciprocal per group and five FMA-class instructions per element, where divide_rn takes about twelve.
//   q0 = x * y, with y = 1 / s rounded, is within 1.5 ulp of x / s; one residual step brings q1 within half an ulp and
//   a hair, and then the second is Markstein's: residual exact, result correctly rounded. |x / s| <= 448 and s is
//   normal, so nothing overflows, and from 2^-11 up no residual underflows. Zero would lose its sign: put it back.
//   s = inf (y = 0): with a divisor of 0 the steps give 0 for a finite x and NaN for an inf. s = NaN: all NaN.
LC_DEVICE float divide_by_scale(float x, const Fp8Scale& scale) {
  const float q0 = ptx::multiply_rn(x, scale.inverse);
  const float q1 = ptx::fma_rn(ptx::fma_rn(-scale.divisor, q0, x), scale.inverse, q0);
  const float q2 = ptx::fma_rn(ptx::fma_rn(-scale.divisor, q1, x), scale.inverse, q1);
  return bits_float(float_bits(q2) | (float_bits(x) & ~kAbsMask));
}

LC_DEVICE ptx::Vec8 quantise_chunk(const float (&values)[kChunk], const Fp8Scale& scale) {
  float ratio[kChunk];
  LC_UNROLL
  for (uint32_t i = 0; i < kChunk; ++i) ratio[i] = divide_by_scale(values[i], scale);
  return {ptx::pack_e4m3x4(ratio[0], ratio[1], ratio[2], ratio[3]),
          ptx::pack_e4m3x4(ratio[4], ratio[5], ratio[6], ratio[7])};
}

}  // namespace longcat_ops::device
