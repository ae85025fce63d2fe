// Exact conversions between float32 and the 8- and 16-bit formats, in integer arithmetic that compilers vectorise.
// Rounding is to nearest even; a NaN becomes the format's positive quiet NaN. Nothing depends on flush-to-zero mode.
#pragma once

#include <cstdint>
#include <cstring>

namespace longcat_ops::cpu {

#define LC_INLINE inline __attribute__((always_inline))

LC_INLINE uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

LC_INLINE float bits_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

constexpr uint32_t kAbsMask = 0x7fffffffu;
constexpr uint32_t kInfBits = 0x7f800000u;
constexpr uint32_t kNanBits = 0x7fc00000u;

// Each format is a struct with a storage type, load() to float32 and store() from float32.
struct Float32 {
  using Storage = float;
  static LC_INLINE float load(float value) { return value; }
  static LC_INLINE float store(float value) {
    const uint32_t bits = float_bits(value);
    return bits_float((bits & kAbsMask) > kInfBits ? kNanBits : bits);
  }
};

struct BFloat16 {
  using Storage = uint16_t;
  static LC_INLINE float load(uint16_t value) { return bits_float(uint32_t(value) << 16); }
  static LC_INLINE uint16_t store(float value) {
    const uint32_t bits = float_bits(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return uint16_t((bits & kAbsMask) > kInfBits ? kNanBits >> 16 : rounded);
  }
};

// NOTE: subnormals go through an add of a power of two whose last place is the format's smallest step: the float32
// adder does the rounding, and no float32 subnormal ever appears.
struct Float16 {
  using Storage = uint16_t;
  static LC_INLINE float load(uint16_t value) {
    const uint32_t magnitude = uint32_t(value & 0x7fffu) << 13;
    const uint32_t normal = magnitude + (112u << 23);
    const uint32_t subnormal = float_bits(bits_float(magnitude + (113u << 23)) - bits_float(113u << 23));
    const uint32_t special = magnitude + (224u << 23);  // inf and NaN
    uint32_t bits = magnitude < (1u << 23) ? subnormal : normal;
    bits = magnitude >= (31u << 23) ? special : bits;
    return bits_float(bits | (uint32_t(value & 0x8000u) << 16));
  }
  static LC_INLINE uint16_t store(float value) {
    const uint32_t sign = (float_bits(value) >> 16) & 0x8000u;
    const uint32_t magnitude = float_bits(value) & kAbsMask;
    const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23)) >> 13;
    const uint32_t subnormal = float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f);
    uint32_t half = magnitude < (113u << 23) ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and above round to inf
    half |= sign;
    return uint16_t(magnitude > kInfBits ? 0x7e00u : half);
  }
};

// OCP e4m3fn: bias 7, no inf, one NaN per sign, largest value 448.
struct Float8E4M3 {
  using Storage = uint8_t;
  static LC_INLINE float load(uint8_t value) {
    const uint32_t magnitude = uint32_t(value & 0x7fu) << 20;
    const uint32_t normal = magnitude + (120u << 23);
    const uint32_t subnormal = float_bits(bits_float(magnitude + (121u << 23)) - bits_float(121u << 23));
    uint32_t bits = magnitude < (1u << 23) ? subnormal : normal;
    bits |= uint32_t(value & 0x80u) << 24;
    return bits_float(magnitude == (0x7fu << 20) ? kNanBits : bits);
  }
  // Saturating: every magnitude above 448, inf included, becomes 448.
  static LC_INLINE uint8_t store(float value) {
    const uint32_t sign = (float_bits(value) >> 24) & 0x80u;
    const uint32_t magnitude = float_bits(value) & kAbsMask;
    const uint32_t saturated = magnitude < 0x43e00000u ? magnitude : 0x43e00000u;  // 448
    const uint32_t normal = (saturated + 0x7ffffu + ((saturated >> 20) & 1u) - (120u << 23)) >> 20;
    const uint32_t subnormal = float_bits(bits_float(saturated) + 16384.0f) - float_bits(16384.0f);
    const uint32_t bits = (saturated < (121u << 23) ? subnormal : normal) | sign;
    return uint8_t(magnitude > kInfBits ? 0x7fu : bits);
  }
};

}  // namespace longcat_ops::cpu
