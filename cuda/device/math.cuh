// Float functions with the same bits on a GPU and a CPU: every step is a rounded operation of ptx/convert.cuh, which
// the emulator has too.
#pragma once

#include <cstdint>
#include <cstring>

#include "ptx/ptx.cuh"

namespace longcat_ops::ptx {
namespace detail {

// 2^exponent, for -126 <= exponent <= 127.
LC_DEVICE float power_of_two(int32_t exponent) {
  const uint32_t bits = static_cast<uint32_t>(exponent + 127) << 23;
  float power;
  memcpy(&power, &bits, sizeof(power));
  return power;
}

}  // namespace detail

// e^x within 0.9 ulp over all floats: 0 for x <= -104 (e^-103.98 is half the least subnormal), infinity on overflow,
// NaN for NaN.
LC_DEVICE float exp(float x) {
  // Clamp x: the exponents below stay in range, and no result changes.
  float y = x < -104.0f ? -104.0f : x;
  y = y > 89.0f ? 89.0f : y;

  // x = n ln2 + r with |r| <= ln2 / 2. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  constexpr float kRounder = 12582912.0f;
  const float shifted = fma_rn(y, 0x1.715476p+0f, kRounder);
  const float n = add_rn(shifted, -kRounder);
  float r = fma_rn(n, -0x1.62e400p-1f, y);  // ln2 in two parts, the first short enough to make the product exact
  r = fma_rn(n, -0x1.7f7d1cp-20f, r);

  // e^r = 1 + r + r^2 q(r), q a minimax fit: relative error 0.06 * 2^-24 before rounding.
  float p = 0x1.6a4d14p-10f;
  p = fma_rn(p, r, 0x1.12398ap-7f);
  p = fma_rn(p, r, 0x1.5558b0p-5f);
  p = fma_rn(p, r, 0x1.555492p-3f);
  p = fma_rn(p, r, 0x1.fffffcp-2f);
  p = fma_rn(p, r, 1.0f);
  p = fma_rn(p, r, 1.0f);

  // Multiply by 2^n in two steps, because n ranges from -150 to 128; only the second step can round.
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof(bits));
  const int32_t exponent = static_cast<int32_t>(bits & 0x1ff) - ((bits & 0x100) != 0 ? 0x200 : 0);
  const int32_t half = exponent / 2;
  return multiply_rn(multiply_rn(p, detail::power_of_two(half)), detail::power_of_two(exponent - half));
}

// 2^x for x <= 0, within 1.1e-7 of its value: 0 for x below -126.5, NaN for NaN.
LC_DEVICE float exp2_unit(float x) {
  // x = n + r with |r| <= 1/2. Adding 1.5 * 2^23 rounds to an integer; adding 127, too, leaves n + 127 in the low bits.
  constexpr float kRounder = 12582912.0f + 127.0f;
  const float y = x < -127.0f ? -127.0f : x;
  const float shifted = add_rn(y, kRounder);
  const float r = add_rn(y, -add_rn(shifted, -kRounder));

  // 2^r = 1 + r q(r), q a minimax fit: relative error 2^-23.4 before rounding.
  float p = 0x1.5bba14p-10f;
  p = fma_rn(p, r, 0x1.3cea88p-7f);
  p = fma_rn(p, r, 0x1.c6b752p-5f);
  p = fma_rn(p, r, 0x1.ebf9bcp-3f);
  p = fma_rn(p, r, 0x1.62e42ap-1f);
  p = fma_rn(p, r, 1.0f);

  // Multiply by 2^n, whose exponent field is n + 127; that of n = -127 is 0.
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof(bits));
  bits <<= 23;
  float power;
  memcpy(&power, &bits, sizeof(power));
  return multiply_rn(p, power);
}

// v / (1 + e^-v): NaN for NaN and -inf, -0 where e^-v overflows.
LC_DEVICE float silu(float v) { return divide_rn(v, add_rn(1.0f, exp(-v))); }

}  // namespace longcat_ops::ptx
