// Arithmetic with the device's bits: round to nearest even, no contraction (compile with -ffp-contract=off), and the
// device's NaN, 0x7fffffff, wherever a result is a NaN.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "emu/ptx/types.h"

namespace longcat_ops::ptx {

namespace detail {

constexpr uint32_t kNan = 0x7fffffffu;
constexpr uint32_t kInfinity = 0x7f800000u;

inline bool is_nan_magnitude(uint32_t magnitude) { return magnitude > kInfinity; }
inline float device_nan(float v) { return v != v ? std::bit_cast<float>(kNan) : v; }

// NOTE: in all three narrowings a subnormal result is rounded by the float32 adder: adding a power of two whose last
// place is the format's smallest step leaves that many steps in the low bits.

inline uint32_t to_e4m3(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (is_nan_magnitude(magnitude)) return 0x7f;
  const uint32_t sign = (bits >> 24) & 0x80u;
  constexpr uint32_t kLargest = 0x43e00000u;  // 448
  const uint32_t cut = magnitude < kLargest ? magnitude : kLargest;
  if (cut < (121u << 23)) return sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(cut) + 16384.0f) - 0x46800000u);
  return sign | ((cut + 0x7ffffu + ((cut >> 20) & 1u) - (120u << 23)) >> 20);
}

inline float from_e4m3(uint32_t v) {
  const uint32_t exponent = (v >> 3) & 15u, mantissa = v & 7u, sign = (v & 0x80u) << 24;
  if (exponent == 15 && mantissa == 7) return std::bit_cast<float>(kNan);
  if (exponent == 0) {
    const float magnitude = float(mantissa) * 0x1p-9f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 120u) << 23 | mantissa << 20);
}

inline uint32_t to_bf16(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  if (is_nan_magnitude(bits & 0x7fffffffu)) return 0x7fff;
  return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

inline float from_bf16(uint32_t v) { return std::bit_cast<float>(v << 16); }

inline uint32_t to_f16(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (is_nan_magnitude(magnitude)) return 0x7fff;
  const uint32_t sign = (bits >> 16) & 0x8000u;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and above
  if (magnitude < (113u << 23))
    return sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u);
  return sign | ((magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13);
}

inline float from_f16(uint32_t v) {
  const uint32_t exponent = (v >> 10) & 31u, mantissa = v & 0x3ffu, sign = (v & 0x8000u) << 16;
  if (exponent == 31) return mantissa != 0 ? std::bit_cast<float>(kNan) : std::bit_cast<float>(sign | kInfinity);
  if (exponent == 0) {
    const float magnitude = float(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | (exponent + 112u) << 23 | mantissa << 13);
}

}  // namespace detail

inline uint32_t pack_e4m3x4(float a, float b, float c, float d) {
  return detail::to_e4m3(a) | detail::to_e4m3(b) << 8 | detail::to_e4m3(c) << 16 | detail::to_e4m3(d) << 24;
}
inline void unpack_e4m3x4(uint32_t v, float (&out)[4]) {
  for (int i = 0; i < 4; ++i) out[i] = detail::from_e4m3((v >> (8 * i)) & 0xffu);
}

inline uint32_t pack_bf16x2(float lo, float hi) { return detail::to_bf16(lo) | detail::to_bf16(hi) << 16; }
inline void unpack_bf16x2(uint32_t v, float& lo, float& hi) {
  lo = detail::from_bf16(v & 0xffffu);
  hi = detail::from_bf16(v >> 16);
}
inline uint32_t pack_f16x2(float lo, float hi) { return detail::to_f16(lo) | detail::to_f16(hi) << 16; }
inline void unpack_f16x2(uint32_t v, float& lo, float& hi) {
  lo = detail::from_f16(v & 0xffffu);
  hi = detail::from_f16(v >> 16);
}

inline float divide_rn(float a, float b) { return detail::device_nan(a / b); }
inline float multiply_rn(float a, float b) { return detail::device_nan(a * b); }
inline float add_rn(float a, float b) { return detail::device_nan(a + b); }
inline float fma_rn(float a, float b, float c) { return detail::device_nan(std::fma(a, b, c)); }
inline float reciprocal_sqrt_rn(float v) { return detail::device_nan(1.0f / std::sqrt(v)); }

}  // namespace longcat_ops::ptx
