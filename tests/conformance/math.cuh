// Arithmetic rounded once: IEEE 754 fixes every bit, the ISA fixes the NaN.
#pragma once

#include "convert.cuh"

namespace longcat_ops::conformance {

struct AddRn : Map<2, 1> {
  static LC_DEVICE void apply(const float* x, uint32_t* y) { y[0] = bits(ptx::add_rn(x[0], x[1])); }
};
struct MultiplyRn : Map<2, 1> {
  static LC_DEVICE void apply(const float* x, uint32_t* y) { y[0] = bits(ptx::multiply_rn(x[0], x[1])); }
};
struct DivideRn : Map<2, 1> {
  static LC_DEVICE void apply(const float* x, uint32_t* y) { y[0] = bits(ptx::divide_rn(x[0], x[1])); }
};
struct FmaRn : Map<3, 1> {
  static LC_DEVICE void apply(const float* x, uint32_t* y) { y[0] = bits(ptx::fma_rn(x[0], x[1], x[2])); }
};
struct ReciprocalSqrtRn : Map<1, 1> {
  static LC_DEVICE void apply(const float* x, uint32_t* y) { y[0] = bits(ptx::reciprocal_sqrt_rn(x[0])); }
};

// Zeros, subnormals, the ends of the normal range, neighbours of powers of two, infinities, NaNs; then random bits.
inline std::vector<uint32_t> interesting_floats() {
  std::vector<uint32_t> bits;
  for (const uint32_t magnitude :
       {0u,          1u,          2u,          0x400000u,   0x7fffffu,   0x800000u,   0x800001u,
        0xffffffu,   0x33800000u, 0x3effffffu, 0x3f000000u, 0x3f7fffffu, 0x3f800000u, 0x3f800001u,
        0x40490fdbu, 0x4b800001u, 0x7e800000u, 0x7f7fffffu, 0x7f800000u, 0x7f800001u, 0x7fc00000u})
    for (const uint32_t sign : {0u, 0x80000000u}) bits.push_back(magnitude | sign);
  return bits;
}

// Every tuple of the interesting floats, then random ones: of any bits, and of close exponents, which cancel.
template <uint32_t N>
std::vector<uint32_t> float_tuples(uint64_t seed) {
  const std::vector<uint32_t> values = interesting_floats();
  const auto count = static_cast<uint32_t>(values.size());
  std::vector<uint32_t> in;
  uint32_t tuples = 1;
  for (uint32_t i = 0; i < N; ++i) tuples *= count;
  for (uint32_t i = 0; i < tuples; i += N == 3 ? 5 : 1)
    for (uint32_t j = 0, rest = i; j < N; ++j, rest /= count) in.push_back(values[rest % count]);
  Numbers numbers(seed);
  for (uint32_t i = 0; i < 4096; ++i)
    for (uint32_t j = 0; j < N; ++j) {
      const uint32_t bits = numbers.next();
      in.push_back(i % 2 == 0 ? bits : (bits & 0x80ffffff) + 0x3f000000);
    }
  return in;
}

inline uint32_t result_bits(float value) { return std::isnan(value) ? 0x7fffffff : float_bits(value); }

// NOTE: rounding a double result once more to float gives the float operation's result (53 >= 2 * 24 + 2).
inline void math_cases(Cases& cases) {
  auto wide = [](uint32_t bits) { return static_cast<double>(bits_float(bits)); };
  auto narrow = [](double value) { return result_bits(static_cast<float>(value)); };
  add_map_case<AddRn>(cases, "math/add_rn", "add_rn", float_tuples<2>(1),
                      [=](const uint32_t* x, uint32_t* y) { y[0] = narrow(wide(x[0]) + wide(x[1])); });
  add_map_case<MultiplyRn>(cases, "math/multiply_rn", "multiply_rn", float_tuples<2>(2),
                           [=](const uint32_t* x, uint32_t* y) { y[0] = narrow(wide(x[0]) * wide(x[1])); });
  add_map_case<DivideRn>(cases, "math/divide_rn", "divide_rn", float_tuples<2>(3),
                         [=](const uint32_t* x, uint32_t* y) { y[0] = narrow(wide(x[0]) / wide(x[1])); });
  add_map_case<FmaRn>(cases, "math/fma_rn", "fma_rn", float_tuples<3>(4), [](const uint32_t* x, uint32_t* y) {
    y[0] = result_bits(std::fma(bits_float(x[0]), bits_float(x[1]), bits_float(x[2])));
  });
  add_map_case<ReciprocalSqrtRn>(cases, "math/reciprocal_sqrt_rn", "reciprocal_sqrt_rn", float_tuples<1>(5),
                                 [=](const uint32_t* x, uint32_t* y) {
                                   const float root = static_cast<float>(std::sqrt(wide(x[0])));
                                   y[0] = narrow(1.0 / static_cast<double>(root));
                                 });
}

}  // namespace longcat_ops::conformance
