// Conversions and arithmetic: IEEE 754 and the ISA fix every bit.
#pragma once

#include <cmath>
#include <limits>

#include "case.h"

namespace longcat_ops::conformance {

// The exact value of a format's code without its sign; codes 0, 1, ... are in order of value.
inline double e4m3_value(uint32_t code) {
  const int exponent = static_cast<int>(code >> 3), mantissa = static_cast<int>(code & 7);
  return exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
}
inline double f16_value(uint32_t code) {
  const int exponent = static_cast<int>(code >> 10), mantissa = static_cast<int>(code & 1023);
  return exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
}
inline double bf16_value(uint32_t code) { return bits_float(code << 16); }

// Nearest code to x >= 0 among 0 .. last, ties to the even code; last + 1 where x rounds beyond the last.
inline uint32_t nearest_code(double x, double (*value)(uint32_t), uint32_t last, double next_after_last) {
  uint32_t low = 0, high = last + 1;  // value(low) <= x < value(high)
  auto at = [&](uint32_t code) { return code > last ? next_after_last : value(code); };
  if (x >= next_after_last) return high;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    (at(middle) <= x ? low : high) = middle;
  }
  const double below = x - at(low), above = at(high) - x;
  return below < above || (below == above && low % 2 == 0) ? low : high;
}

// ISA, cvt: e4m3x2 saturates finite and infinite values to +-448, NaN gives 0x7f; bf16 and f16 overflow to infinity,
// NaN gives 0x7fff.
inline uint32_t e4m3_code(float x) {
  if (std::isnan(x)) return 0x7f;
  const uint32_t code = std::isinf(x) ? 0x7e : nearest_code(std::fabs(x), e4m3_value, 0x7e, 480);
  return (code > 0x7e ? 0x7e : code) | (std::signbit(x) ? 0x80 : 0);
}
inline uint32_t f16_code(float x) {
  if (std::isnan(x)) return 0x7fff;
  const uint32_t code = std::isinf(x) ? 0x7c00 : nearest_code(std::fabs(x), f16_value, 0x7bff, 65536);
  return code | (std::signbit(x) ? 0x8000 : 0);
}
inline uint32_t bf16_code(float x) {
  if (std::isnan(x)) return 0x7fff;
  const uint32_t code = std::isinf(x) ? 0x7f80 : nearest_code(std::fabs(x), bf16_value, 0x7f7f, 0x1p128);
  return code | (std::signbit(x) ? 0x8000 : 0);
}

// For every item i, F::apply maps F::kIn words of in to F::kOut words of out.
template <class F>
LC_KERNEL LC_LAUNCH_BOUNDS(256, 1) map_kernel(const uint32_t* in, uint32_t* out, uint32_t count) {
  for (uint32_t i = ptx::thread_index(); i < count; i += 256) {
    uint32_t y[F::kOut];
    float x[F::kIn];
    LC_UNROLL
    for (uint32_t j = 0; j < F::kIn; ++j) x[j] = ptx::load_global(reinterpret_cast<const float*>(in) + F::kIn * i + j);
    F::apply(x, y);
    LC_UNROLL
    for (uint32_t j = 0; j < F::kOut; ++j) ptx::store_global(out + F::kOut * i + j, y[j]);
  }
}

template <uint32_t IN, uint32_t OUT>
struct Map {
  static constexpr uint32_t kIn = IN, kOut = OUT;
  static LC_DEVICE uint32_t bits(float x) {
    uint32_t word;
    memcpy(&word, &x, sizeof word);
    return word;
  }
};
struct PackE4m3x4 : Map<4, 1> {
  static LC_DEVICE void apply(const float* x, uint32_t* y) { y[0] = ptx::pack_e4m3x4(x[0], x[1], x[2], x[3]); }
};
struct PackBf16x2 : Map<2, 1> {
  static LC_DEVICE void apply(const float* x, uint32_t* y) { y[0] = ptx::pack_bf16x2(x[0], x[1]); }
};
struct PackF16x2 : Map<2, 1> {
  static LC_DEVICE void apply(const float* x, uint32_t* y) { y[0] = ptx::pack_f16x2(x[0], x[1]); }
};
struct UnpackE4m3x4 : Map<1, 4> {
  static LC_DEVICE void apply(const float* x, uint32_t* y) {
    float values[4];
    ptx::unpack_e4m3x4(bits(x[0]), values);
    LC_UNROLL
    for (int i = 0; i < 4; ++i) y[i] = bits(values[i]);
  }
};
struct UnpackBf16x2 : Map<1, 2> {
  static LC_DEVICE void apply(const float* x, uint32_t* y) {
    float low, high;
    ptx::unpack_bf16x2(bits(x[0]), low, high);
    y[0] = bits(low);
    y[1] = bits(high);
  }
};
struct UnpackF16x2 : Map<1, 2> {
  static LC_DEVICE void apply(const float* x, uint32_t* y) {
    float low, high;
    ptx::unpack_f16x2(bits(x[0]), low, high);
    y[0] = bits(low);
    y[1] = bits(high);
  }
};

// `host` computes the F::kOut words that F::apply should return.
template <class F, class Host>
void add_map_case(Cases& cases, const char* name, const char* primitive, const std::vector<uint32_t>& in, Host host) {
  cases.add(name, primitive, [=](Machine& machine) {
    const uint32_t count = static_cast<uint32_t>(in.size()) / F::kIn;
    std::vector<uint32_t> expected(count * F::kOut);
    for (uint32_t i = 0; i < count; ++i) host(&in[i * F::kIn], &expected[i * F::kOut]);
    auto* out = machine.output<uint32_t>(expected.size());
    machine.launch(map_kernel<F>, {1, 256}, static_cast<const uint32_t*>(machine.input(in)), out, count);
    machine.expect(out, expected);
  });
}

// Floats with every `step`-th upper half (sign, exponent, seven mantissa bits), each with lower halves around a tie.
inline std::vector<uint32_t> float_sweep(uint32_t step) {
  std::vector<uint32_t> bits;
  for (uint32_t upper = 0; upper < 1 << 16; upper += step)
    for (const uint32_t lower : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) bits.push_back(upper << 16 | lower);
  bits.resize(bits.size() / 4 * 4);
  return bits;
}

// All 16-bit codes, two in a word.
inline std::vector<uint32_t> all_pairs() {
  std::vector<uint32_t> words;
  for (uint32_t i = 0; i < 1 << 16; i += 2) words.push_back(i | (i + 1) << 16);
  return words;
}

// The bits of an exactly representable value; NaN as the device encodes it.
inline uint32_t exact_bits(bool negative, bool nan, double magnitude) {
  if (nan) return 0x7fffffff;
  return float_bits(static_cast<float>(negative ? -magnitude : magnitude));
}

inline void convert_cases(Cases& cases) {
  auto e4m3 = [](uint32_t bits) { return e4m3_code(bits_float(bits)); };
  add_map_case<PackE4m3x4>(cases, "convert/pack_e4m3x4", "pack_e4m3x4", float_sweep(1),
                           [=](const uint32_t* x, uint32_t* y) {
                             y[0] = e4m3(x[0]) | e4m3(x[1]) << 8 | e4m3(x[2]) << 16 | e4m3(x[3]) << 24;
                           });
  add_map_case<PackBf16x2>(
      cases, "convert/pack_bf16x2", "pack_bf16x2", float_sweep(7),
      [](const uint32_t* x, uint32_t* y) { y[0] = bf16_code(bits_float(x[0])) | bf16_code(bits_float(x[1])) << 16; });
  add_map_case<PackF16x2>(
      cases, "convert/pack_f16x2", "pack_f16x2", float_sweep(7),
      [](const uint32_t* x, uint32_t* y) { y[0] = f16_code(bits_float(x[0])) | f16_code(bits_float(x[1])) << 16; });

  std::vector<uint32_t> codes;
  for (uint32_t i = 0; i < 256; i += 4) codes.push_back(i | (i + 1) << 8 | (i + 2) << 16 | (i + 3) << 24);
  add_map_case<UnpackE4m3x4>(cases, "convert/unpack_e4m3x4", "unpack_e4m3x4", codes,
                             [](const uint32_t* x, uint32_t* y) {
                               for (uint32_t i = 0; i < 4; ++i) {
                                 const uint32_t code = x[0] >> (8 * i) & 0xff;
                                 y[i] = exact_bits(code >= 0x80, (code & 0x7f) == 0x7f, e4m3_value(code & 0x7f));
                               }
                             });
  add_map_case<UnpackBf16x2>(cases, "convert/unpack_bf16x2", "unpack_bf16x2", all_pairs(),
                             [](const uint32_t* x, uint32_t* y) {
                               y[0] = x[0] << 16;
                               y[1] = x[0] & 0xffff0000;
                             });
  add_map_case<UnpackF16x2>(cases, "convert/unpack_f16x2", "unpack_f16x2", all_pairs(),
                            [](const uint32_t* x, uint32_t* y) {
                              for (uint32_t i = 0; i < 2; ++i) {
                                const uint32_t code = x[0] >> (16 * i) & 0x7fff;
                                const bool infinite = code == 0x7c00;
                                y[i] = exact_bits(x[0] >> (16 * i) & 0x8000, code > 0x7c00,
                                                  infinite ? std::numeric_limits<double>::infinity() : f16_value(code));
                              }
                            });
}

}  // namespace longcat_ops::conformance
