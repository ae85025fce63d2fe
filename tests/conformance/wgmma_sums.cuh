// How wgmma adds: raw accumulators on inputs that distinguish ways of adding. The ISA leaves it open. Expected is the
// published model of an H100: products and accumulator are aligned to the largest exponent among them, truncated toward
// zero at a number of fraction bits, added exactly, and the sum is truncated again. For e4m3 that number is 13 and was
// checked on an H100 (mmaemu); for bf16, 25 (24 significant bits and more) is from the literature.
#pragma once

#include "wgmma.cuh"

namespace longcat_ops::conformance {

// significand * 2^scale, exactly.
struct Exact {
  int64_t significand;
  int exponent;  // for alignment: a product has the sum of its factors' exponents, not renormalised
  int scale;
};

inline Exact split(double value, int fraction_bits, int smallest_exponent) {
  if (value == 0) return {0, -10000, 0};
  int exponent;
  std::frexp(value, &exponent);
  exponent = std::max(exponent - 1, smallest_exponent);
  return {static_cast<int64_t>(std::ldexp(value, fraction_bits - exponent)), exponent, exponent - fraction_bits};
}

// significand * 2^(scale - at), truncated toward zero to an integer.
inline int64_t cut(int64_t significand, int scale, int at) {
  const int shift = scale - at;
  if (shift >= 0) return significand * (int64_t{1} << shift);
  if (shift < -62) return 0;
  const int64_t magnitude = significand < 0 ? -significand : significand;
  return significand < 0 ? -(magnitude >> -shift) : magnitude >> -shift;
}

struct Format {
  bool e4m3;
  int fraction_bits, smallest_exponent;  // of the type
  int kept_bits;                         // of each term
  int result_bits;                       // of the sum
};
constexpr Format kE4m3Format{true, 3, -6, 13, 13}, kBf16Format{false, 7, -126, 25, 23};

// One instruction: c + sum of a[k] * b[k].
inline float add_products(const Format& format, const uint16_t* a, const uint16_t* b, uint32_t count, float c) {
  std::vector<Exact> terms{split(c, 23, -126)};
  for (uint32_t k = 0; k < count; ++k) {
    const double x = decode(a[k], format.e4m3), y = decode(b[k], format.e4m3);
    const Exact p = split(x, format.fraction_bits, format.smallest_exponent);
    const Exact q = split(y, format.fraction_bits, format.smallest_exponent);
    if (p.significand != 0 && q.significand != 0)
      terms.push_back({p.significand * q.significand, p.exponent + q.exponent, p.scale + q.scale});
  }
  int largest = -132;
  for (const Exact& term : terms) largest = std::max(largest, term.exponent);
  int64_t sum = 0;
  for (const Exact& term : terms) sum += cut(term.significand, term.scale, largest - format.kept_bits);
  if (sum == 0) return 0.0f;
  const double exact = std::ldexp(static_cast<double>(sum), largest - format.kept_bits);
  int exponent;
  std::frexp(exact, &exponent);
  const double step = std::ldexp(1.0, std::max(exponent - 1, -126) - format.result_bits);
  return static_cast<float>(std::trunc(exact / step) * step);
}

// A chain of `steps` instructions on A [64][K] and B [16][K].
template <Kind KIND>
void chain(Machine& machine, const Codes& a, const Codes& b, const std::vector<float>& initial) {
  constexpr Format kFormat = is_e4m3(KIND) ? kE4m3Format : kBf16Format;
  constexpr uint32_t kSlice = is_e4m3(KIND) ? 32 : 16;
  const auto k_count = static_cast<uint32_t>(a.size() / 64);
  run_product<KIND, 16>(machine, ptx::Swizzle::k32B, ptx::Swizzle::k32B, k_count, a, b, initial,
                        [&](uint32_t row, uint32_t column) {
                          float sum = initial.empty() ? 0.0f : initial[row * 16 + column];
                          for (uint32_t k = 0; k < k_count; k += kSlice)
                            sum = add_products(kFormat, &a[row * k_count + k], &b[column * k_count + k], kSlice, sum);
                          return sum;
                        });
}

// Codes [rows][k_count] of the values `value(row, k)`.
template <Kind KIND, class Value>
Codes codes_of(uint32_t rows, uint32_t k_count, Value value) {
  Codes codes;
  for (uint32_t row = 0; row < rows; ++row)
    for (uint32_t k = 0; k < k_count; ++k) {
      const float x = value(row, k);
      codes.push_back(static_cast<uint16_t>(is_e4m3(KIND) ? e4m3_code(x) : bf16_code(x)));
    }
  return codes;
}

// A value of random sign and significand, exponent low .. high.
inline float spread(Numbers& numbers, int low, int high) {
  const float significand = 1.0f + static_cast<float>(numbers.below(128)) / 128;
  const int exponent = low + static_cast<int>(numbers.below(static_cast<uint32_t>(high - low + 1)));
  return std::ldexp(numbers.below(2) ? significand : -significand, exponent);
}

// Random values with exponents low .. high.
template <Kind KIND>
void random_chain(Machine& machine, uint32_t k_count, int low, int high, bool accumulate) {
  Numbers numbers(k_count + 7 * static_cast<uint32_t>(high - low));
  auto value = [&](uint32_t, uint32_t) { return spread(numbers, low, high); };
  const Codes a = codes_of<KIND>(64, k_count, value), b = codes_of<KIND>(16, k_count, value);
  std::vector<float> initial(accumulate ? 64 * 16 : 0);
  for (float& c : initial) {  // all 24 bits used, so that truncation of the accumulator shows
    c = std::ldexp(1.0f + static_cast<float>(numbers.below(1 << 23)) * 0x1p-23f,
                   low + static_cast<int>(numbers.below(static_cast<uint32_t>(2 * (high - low) + 6))));
    if (numbers.below(2)) c = -c;
  }
  chain<KIND>(machine, a, b, initial);
}

// Row r puts one large product beside small ones 2^-(r % 32) as large, of either sign. Shows at which size a term drops
// out and whether its cut-off bits are lost toward zero. Column c moves the large product through the slice.
template <Kind KIND>
void one_large(Machine& machine, uint32_t k_count) {
  const float large = is_e4m3(KIND) ? 256.0f : 0x1p15f;
  const int floor = is_e4m3(KIND) ? -9 : -40;
  auto small = [&](uint32_t row) {
    const int exponent = static_cast<int>(std::log2(large)) - static_cast<int>(row % 32);
    return std::ldexp(row / 32 ? -1.5f : 1.5f, std::max(exponent, floor + 1));
  };
  const Codes a =
      codes_of<KIND>(64, k_count, [&](uint32_t row, uint32_t k) { return k % 16 == row % 16 ? large : small(row); });
  const Codes b = codes_of<KIND>(16, k_count, [&](uint32_t column, uint32_t k) {
    return k % 16 == column ? large : std::ldexp(column % 2 ? 1.25f : -1.0f, -static_cast<int>(column / 2));
  });
  chain<KIND>(machine, a, b, {});
}

// +x and -x cancel exactly, and the remaining terms are small: shows which of their bits survive beside x.
template <Kind KIND>
void cancellation(Machine& machine, uint32_t k_count) {
  const float large = is_e4m3(KIND) ? 448.0f : 0x1p20f;
  const Codes a = codes_of<KIND>(64, k_count, [&](uint32_t row, uint32_t k) {
    if (k % 16 == 3) return large;
    if (k % 16 == 9) return -large;
    return std::ldexp(1.0f, -static_cast<int>(row % 10));
  });
  const Codes b = codes_of<KIND>(16, k_count, [&](uint32_t column, uint32_t k) {
    return k % 16 == 3 || k % 16 == 9 ? std::ldexp(1.75f, static_cast<int>(column % 8))
                                      : std::ldexp(1.0f, -static_cast<int>(column % 8));
  });
  chain<KIND>(machine, a, b, {});
}

template <Kind KIND>
void add_sum_cases(Cases& cases, const std::string& type, const char* primitive) {
  constexpr uint32_t kSlice = is_e4m3(KIND) ? 32 : 16;
  const char* note = "not fixed by the ISA: expected is the published model of an H100";
  auto add = [&](const std::string& name, std::function<void(Machine&)> run) {
    cases.add("sums/" + type + "_" + name, primitive, std::move(run), note);
  };
  add("near", [](Machine& m) { random_chain<KIND>(m, kSlice, -1, 1, false); });
  add("wide", [](Machine& m) { random_chain<KIND>(m, kSlice, -6, 8, false); });
  add("subnormal",
      [](Machine& m) { random_chain<KIND>(m, kSlice, is_e4m3(KIND) ? -9 : -70, is_e4m3(KIND) ? -5 : -62, false); });
  add("accumulate", [](Machine& m) { random_chain<KIND>(m, kSlice, -6, 8, true); });
  add("chain_of_4", [](Machine& m) { random_chain<KIND>(m, 4 * kSlice, -6, 8, true); });
  add("chain_of_16", [](Machine& m) { random_chain<KIND>(m, 16 * kSlice, -3, 3, false); });
  add("one_large", [](Machine& m) { one_large<KIND>(m, kSlice); });
  add("cancellation", [](Machine& m) { cancellation<KIND>(m, kSlice); });
}

// A NaN in a row of A or B makes that whole row or column of the result NaN and nothing else.
inline void nan_products(Machine& machine) {
  const Codes a = codes_of<Kind::kE4m3>(64, 32, [](uint32_t row, uint32_t k) {
    return row % 9 == 4 && k == row % 32 ? std::numeric_limits<float>::quiet_NaN() : 1.0f;
  });
  const Codes b = codes_of<Kind::kE4m3>(16, 32, [](uint32_t column, uint32_t k) {
    return column == 5 && k == 31 ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
  });
  run_product<Kind::kE4m3, 16>(
      machine, ptx::Swizzle::k32B, ptx::Swizzle::k32B, 32, a, b, {},
      [](uint32_t row, uint32_t column) { return row % 9 == 4 || column == 5 ? bits_float(0x7fffffff) : 0.0f; });
}

inline void sum_cases(Cases& cases) {
  add_sum_cases<Kind::kE4m3>(cases, "e4m3", "wgmma_e4m3");
  add_sum_cases<Kind::kBf16>(cases, "bf16", "wgmma_bf16");
  cases.add("sums/e4m3_nan", "wgmma_e4m3", nan_products, "the NaN is taken to be the machine's usual one, 0x7fffffff");
}

}  // namespace longcat_ops::conformance
