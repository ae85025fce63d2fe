// The quantisation rule of all kernels: s = max(amax, 1e-4) / 448, q = e4m3(x / s), both IEEE divisions.
#pragma once

#include "device/vector_io.cuh"
#include "ptx/ptx.cuh"

namespace longcat_ops::device {

constexpr float kMaxE4M3 = 448.0f;
constexpr uint32_t kMinAmaxBits = 0x38d1b717u;  // 1e-4f
constexpr uint32_t kAbsMask = 0x7fffffffu;
constexpr uint32_t kInfBits = 0x7f800000u;

// NOTE: amax is an integer maximum over the bits of |x|. They order like the values, with NaN above inf, so a NaN
// propagates and the order of reduction does not matter.
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
  float value;             // s
  float divisor;           // s, but 0 where s is inf
  float inverse, negated;  // 1 / s, -1 / s
};

// x / divisor in three FMA-class instructions; divide_rn takes about twelve. Needs inverse = 1 / divisor correctly
// rounded, negated = -inverse, and no value near overflow or underflow. Errs by barely more than half an ulp.
// NOTE: the residual is divisor * q - x, because x - divisor * q would be +0 for x = -0 and lose the sign.
LC_DEVICE float divide_shared(float x, float divisor, float inverse, float negated) {
  const float q = ptx::multiply_rn(x, inverse);
  return ptx::fma_rn(ptx::fma_rn(divisor, q, -x), negated, q);
}

// NOTE: the quotient by 448 equals IEEE division for every amax; tests/support/exhaustive_quotients.cpp tries them all.
LC_DEVICE Fp8Scale make_fp8_scale(uint32_t amax_bits) {
  constexpr float kInverseMax = 1.0f / kMaxE4M3;
  const uint32_t bits = amax_bits > kMinAmaxBits ? amax_bits : kMinAmaxBits;
  const float quotient = divide_shared(bits_float(bits), kMaxE4M3, kInverseMax, -kInverseMax);
  const float value = bits < kInfBits ? quotient : bits_float(bits == kInfBits ? kInfBits : kNanBits);
  const float inverse = ptx::divide_rn(1.0f, value);
  return {value, bits == kInfBits ? 0.0f : value, inverse, -inverse};
}

// x / s, equal to IEEE division as far as e4m3 can tell: both lie on the same side of every tie between two codes, or
// on the tie.
// NOTE: tests/support/exhaustive_quotients.cpp shows this for every significand of s and every x near a tie. Exponents
// do not matter: s is normal, |x / s| <= 448, and no residual underflows near a tie. An x so small that a step
// underflows gives a zero of its sign. s = inf makes inverse and divisor 0, so a finite x gives 0 and an inf gives NaN.
// s = NaN gives NaN.
LC_DEVICE float divide_by_scale(float x, const Fp8Scale& scale) {
  return divide_shared(x, scale.divisor, scale.inverse, scale.negated);
}

LC_DEVICE ptx::Vec8 quantise_chunk(const float (&values)[kChunk], const Fp8Scale& scale) {
  float ratio[kChunk];
  LC_UNROLL
  for (uint32_t i = 0; i < kChunk; ++i) ratio[i] = divide_by_scale(values[i], scale);
  return {ptx::pack_e4m3x4(ratio[0], ratio[1], ratio[2], ratio[3]),
          ptx::pack_e4m3x4(ratio[4], ratio[5], ratio[6], ratio[7])};
}

}  // namespace longcat_ops::device
