#include "emu/tensor_core.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <vector>

#include "emu/ptx/convert.h"

// The bits are the same without it: the order of additions of an element does not depend on the vector length, and
// there is no contraction.
#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_UNDEFINED__)
#define LC_EMU_VECTOR __attribute__((target_clones("avx2", "default"), optimize("O3")))
#else
#define LC_EMU_VECTOR
#endif

namespace longcat_ops::emu {
namespace {

constexpr int kRows = 64;

// One rounding per instruction: products and sums in double.
LC_EMU_VECTOR void multiply_exact(const double* a, const double* b_by_k, int n, int k_count, bool accumulate,
                                  float* d) {
  double sum[256];
  for (int row = 0; row < kRows; ++row, a += k_count, d += n) {
    for (int column = 0; column < n; ++column) sum[column] = accumulate ? double(d[column]) : 0.0;
    for (int k = 0; k < k_count; ++k) {
      const double x = a[k];
      const double* b = b_by_k + k * n;
      for (int column = 0; column < n; ++column) sum[column] += x * b[column];
    }
    for (int column = 0; column < n; ++column) d[column] = float(sum[column]);
  }
}

template <class T, class Decode>
void run_exact(const T* a, const T* b, int n, int k_count, bool accumulate, float* d, Decode decode) {
  thread_local std::vector<double> wide_a, wide_b;
  wide_a.resize(kRows * k_count);
  wide_b.resize(n * k_count);
  for (int i = 0; i < kRows * k_count; ++i) wide_a[i] = decode(a[i]);
  for (int row = 0; row < n; ++row)
    for (int k = 0; k < k_count; ++k) wide_b[k * n + row] = decode(b[row * k_count + k]);
  multiply_exact(wide_a.data(), wide_b.data(), n, k_count, accumulate, d);
}

const float* e4m3_table() {
  static const auto table = [] {
    std::array<float, 256> values;
    for (uint32_t i = 0; i < 256; ++i) values[i] = ptx::detail::from_e4m3(i);
    return values;
  }();
  return table.data();
}

// --- the tensor core of an H100: all products of an instruction and the accumulator are aligned to the largest
// exponent, cut (toward zero) to some fraction bits, added exactly, and the sum is cut again.

constexpr int kNoExponent = -1000;
constexpr int kSmallestExponent = -132;  // of the alignment

struct Operand {  // value = significand * 2^(exponent - fraction bits of the format); a zero has no exponent
  std::vector<int32_t> significand, exponent;
  std::vector<uint8_t> special_rows;  // with an infinity or a NaN
};

// For values that are normal in double: all floats but zero.
int exponent_of(double value) { return int(std::bit_cast<uint64_t>(value) >> 52 & 0x7ff) - 1023; }
double power_of_two(int exponent) { return std::bit_cast<double>(uint64_t(exponent + 1023) << 52); }

LC_EMU_VECTOR int largest_exponent(const int32_t* ea, const int32_t* eb, int k_count) {
  int largest = kNoExponent;
  for (int k = 0; k < k_count; ++k) {
    const int e = ea[k] + eb[k];
    largest = e > largest ? e : largest;
  }
  return largest;
}

// In units of the last place that is kept; `up`: fraction bits kept beyond those of products. NOTE: 32 bits are enough:
// 32 * 15^2 * 2^7 for e4m3, 16 * 255^2 * 2^11 for bf16.
LC_EMU_VECTOR int32_t sum_of_products(const int32_t* a, const int32_t* ea, const int32_t* b, const int32_t* eb,
                                      int k_count, int alignment, int up) {
  int32_t sum = 0;
  for (int k = 0; k < k_count; ++k) {
    const int32_t product = a[k] * b[k];
    const int32_t shift = std::min(31, alignment - (ea[k] + eb[k]));
    const int32_t magnitude = (product < 0 ? -product : product) << up >> shift;  // cut toward zero
    sum += product < 0 ? -magnitude : magnitude;
  }
  return sum;
}

template <int kProductFraction, int kFraction, int kResultFraction>
float hopper_element(const int32_t* a, const int32_t* ea, const int32_t* b, const int32_t* eb, int k_count, float c) {
  int alignment = largest_exponent(ea, eb, k_count);
  if (alignment < kNoExponent / 2) alignment = kNoExponent;
  if (c != 0) alignment = std::max(alignment, exponent_of(c));
  if (alignment == kNoExponent) return 0.0f;
  alignment = std::max(alignment, kSmallestExponent);
  const int32_t products = sum_of_products(a, ea, b, eb, k_count, alignment, kFraction - kProductFraction);
  const double unit = power_of_two(alignment - kFraction);
  const double sum = double(int64_t(products) + int64_t(double(c) / unit)) * unit;
  if (sum == 0) return 0.0f;
  const double step = power_of_two(std::max(exponent_of(sum), -126) - kResultFraction);
  return float(std::trunc(sum / step) * step);
}

template <class T, class Decode>
Operand split(const T* values, int rows, int k_count, int fraction, int smallest_exponent, Decode decode) {
  Operand out;
  out.significand.resize(rows * k_count);
  out.exponent.assign(rows * k_count, kNoExponent);
  out.special_rows.assign(rows, 0);
  for (int i = 0; i < rows * k_count; ++i) {
    const float value = decode(values[i]);
    if (!std::isfinite(value)) {
      out.special_rows[i / k_count] = 1;
    } else if (value != 0) {
      const int exponent = std::max(exponent_of(value), smallest_exponent);
      out.exponent[i] = exponent;
      out.significand[i] = int32_t(std::ldexp(value, fraction - exponent));
    }
  }
  return out;
}

template <int kFormatFraction, int kFraction, int kResultFraction, class T, class Decode>
void run_hopper(const T* a, const T* b, int n, int k_count, bool accumulate, float* d, int smallest_exponent,
                Decode decode) {
  const Operand x = split(a, kRows, k_count, kFormatFraction, smallest_exponent, decode);
  const Operand y = split(b, n, k_count, kFormatFraction, smallest_exponent, decode);
  for (int row = 0; row < kRows; ++row)
    for (int column = 0; column < n; ++column) {
      float& element = d[row * n + column];
      const float c = accumulate ? element : 0.0f;
      if (x.special_rows[row] || y.special_rows[column] || !std::isfinite(c)) {
        double sum = c;  // gives infinities and NaNs as any arithmetic does
        for (int k = 0; k < k_count; ++k)
          sum += double(decode(a[row * k_count + k])) * double(decode(b[column * k_count + k]));
        element = float(sum);
        continue;
      }
      element = hopper_element<2 * kFormatFraction, kFraction, kResultFraction>(
          &x.significand[row * k_count], &x.exponent[row * k_count], &y.significand[column * k_count],
          &y.exponent[column * k_count], k_count, c);
    }
}

}  // namespace

void multiply_e4m3(const uint8_t* a, const uint8_t* b, int n, bool accumulate, float* d, MmaMode mode) {
  const float* table = e4m3_table();
  const auto decode = [table](uint8_t v) { return table[v]; };
  if (mode == MmaMode::kExact)
    run_exact(a, b, n, 32, accumulate, d, decode);
  else
    run_hopper<3, 13, 13>(a, b, n, 32, accumulate, d, -6, decode);
}

// NOTE: the 25 fraction bits of bf16 on Hopper are from the literature; only the e4m3 model is validated.
void multiply_bf16(const uint16_t* a, const uint16_t* b, int n, bool accumulate, float* d, MmaMode mode) {
  const auto decode = [](uint16_t v) { return ptx::detail::from_bf16(v); };
  if (mode == MmaMode::kExact)
    run_exact(a, b, n, 16, accumulate, d, decode);
  else
    run_hopper<7, 25, 23>(a, b, n, 16, accumulate, d, -126, decode);
}

}  // namespace longcat_ops::emu
