// Decodes e4m3 codes of a weight, a vector of kLanes at a time, for each instruction set.
//
// A code becomes a float16 with the same fields, which is the value times 2^-8, subnormals included; the processor
// widens those without regard to flush-to-zero modes. A NaN becomes finite, so it is looked for apart.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/lanes.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace longcat_ops::cpu {

// A GCC and Clang vector, which they split if the target's are narrower.
using Floats = float __attribute__((vector_size(4 * kLanes)));

namespace e4m3 {

// decode(codes) * kDecodedUnit are the values of kLanes codes. MissedNan finds out whether a NaN was among the blocks
// of 128 codes that it has seen, of which decode made a number. add_product(a, b, sum) = sum + a * b, with an exact
// product.
namespace portable {

constexpr float kDecodedUnit = 1.0f;

LC_INLINE Floats decode(const uint8_t* codes) {
  float values[kLanes];
  for (int j = 0; j < kLanes; ++j) values[j] = Float8E4M3::load(codes[j]);
  Floats all;
  std::memcpy(&all, values, sizeof all);
  return all;
}

struct MissedNan {  // decode misses none
  LC_INLINE void see(const uint8_t*) {}
  LC_INLINE bool found() const { return false; }
};

LC_INLINE Floats add_product(Floats a, Floats b, Floats sum) { return sum + a * b; }

}  // namespace portable

#if defined(__x86_64__)

// s eeee mmm -> s 0 eeee mmm 0000000, in 16 bits.
LC_TARGET_AVX2 LC_INLINE __m256i as_halves(__m128i codes) {
  return _mm256_and_si256(_mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7), _mm256_set1_epi16((short)0xbf80));
}

namespace avx2 {

constexpr float kDecodedUnit = 256.0f;

LC_TARGET_AVX2 LC_INLINE Floats decode(const uint8_t* codes) {
  const __m256i halves = as_halves(_mm_loadu_si128((const __m128i*)codes));
  union {
    __m256 parts[2];
    Floats all;
  } values = {{_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))}};
  return values.all;
}

struct MissedNan {
  __m256i largest = {};  // magnitude in each place

  LC_TARGET_AVX2 LC_INLINE void see(const uint8_t* codes) {
    for (int j = 0; j < 128; j += 32) {
      const __m256i found = _mm256_loadu_si256((const __m256i*)(codes + j));
      largest = _mm256_max_epu8(largest, _mm256_and_si256(found, _mm256_set1_epi8(0x7f)));
    }
  }
  LC_TARGET_AVX2 LC_INLINE bool found() const {
    return _mm256_movemask_epi8(_mm256_cmpeq_epi8(largest, _mm256_set1_epi8(0x7f))) != 0;
  }
};

LC_TARGET_AVX2 LC_INLINE Floats add_product(Floats a, Floats b, Floats sum) {
  union Parts {
    Floats all;
    __m256 parts[2];
  };
  const Parts x = {a}, y = {b};
  Parts z = {sum};
  for (int i = 0; i < 2; ++i) z.parts[i] = _mm256_fmadd_ps(x.parts[i], y.parts[i], z.parts[i]);
  return z.all;
}

}  // namespace avx2

namespace avx512 {

constexpr float kDecodedUnit = 256.0f;

LC_TARGET_AVX512 LC_INLINE Floats decode(const uint8_t* codes) {
  const __m256i halves = as_halves(_mm_loadu_si128((const __m128i*)codes));
  return (Floats)_mm512_maskz_cvtph_ps(0xffff, halves);  // GCC warns of the form without a mask
}

struct MissedNan {
  __m512i largest = {};  // magnitude in each place

  LC_TARGET_AVX512 LC_INLINE void see(const uint8_t* codes) {
    for (int j = 0; j < 128; j += 64) {
      const __m512i found = _mm512_loadu_si512(codes + j);
      largest = _mm512_max_epu8(largest, _mm512_and_si512(found, _mm512_set1_epi8(0x7f)));
    }
  }
  LC_TARGET_AVX512 LC_INLINE bool found() const { return _mm512_cmpeq_epi8_mask(largest, _mm512_set1_epi8(0x7f)) != 0; }
};

LC_TARGET_AVX512 LC_INLINE Floats add_product(Floats a, Floats b, Floats sum) {
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
}

}  // namespace avx512

#else

namespace avx2 = portable;
namespace avx512 = portable;

#endif

}  // namespace e4m3
}  // namespace longcat_ops::cpu
