#include "cpu/quant.h"

#include "common/constants.h"
#include "cpu/dispatch.h"
#include "cpu/exp.h"
#include "cpu/isa.h"
#include "cpu/lanes.h"

namespace longcat_ops::cpu {
namespace {

constexpr float kMinAmax = 1e-4f;
constexpr float kMaxE4M3 = 448.0f;

// NOTE: the maximum is taken over the bits of |x|. They order like the values, with NaN above inf, so a NaN propagates.
// An integer maximum has no order of evaluation, so every instruction set agrees.
template <class Format>
LC_INLINE uint32_t max_abs_bits(const typename Format::Storage* x, int64_t count, uint32_t start) {
  uint32_t result = start;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = float_bits(Format::load(x[i])) & kAbsMask;
    result = bits > result ? bits : result;
  }
  return result;
}

template <class Format>
LC_INLINE void quantise_run(const typename Format::Storage* __restrict x, uint8_t* __restrict q, int64_t count,
                            float scale) {
  for (int64_t i = 0; i < count; ++i) q[i] = Float8E4M3::store(Format::load(x[i]) / scale);
}

template <class Format>
LC_INLINE void quant_body(const QuantParams& p, int64_t begin, int64_t end) {
  using Storage = const typename Format::Storage;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t row_begin = block * p.block_rows, row_end = smaller(row_begin + p.block_rows, p.rows);
    float* s = row_of<float>(p.s, block);
    for (int64_t column = 0; column < p.columns; column += p.block_columns, s += p.s.column_stride) {
      const int64_t count = smaller(p.block_columns, p.columns - column);
      uint32_t bits = 0;
      for (int64_t row = row_begin; row < row_end; ++row)
        bits = max_abs_bits<Format>(row_of<Storage>(p.x, row) + column, count, bits);
      const float amax = bits_float(bits > kInfBits ? kNanBits : bits);
      const float scale = (amax < kMinAmax ? kMinAmax : amax) / kMaxE4M3;  // a NaN passes
      *s = scale;
      for (int64_t row = row_begin; row < row_end; ++row)
        quantise_run<Format>(row_of<Storage>(p.x, row) + column, row_of<uint8_t>(p.q, row) + column, count, scale);
    }
  }
}

template <class Format>
LC_INLINE void dequantise_run(const uint8_t* __restrict q, typename Format::Storage* __restrict out, int64_t count,
                              float scale) {
  for (int64_t i = 0; i < count; ++i) out[i] = Format::store(Float8E4M3::load(q[i]) * scale);
}

template <class Format>
LC_INLINE void dequant_body(const DequantParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* q = row_of<const uint8_t>(p.q, row);
    const float* s = row_of<const float>(p.s, row / p.block_rows);
    auto* out = row_of<typename Format::Storage>(p.out, row);
    for (int64_t column = 0; column < p.columns; column += p.block_columns, s += p.s.column_stride)
      dequantise_run<Format>(q + column, out + column, smaller(p.block_columns, p.columns - column), *s);
  }
}

template <class Format>
LC_INLINE void silu_and_mul_body(const SiluAndMulQuantParams& p, int64_t begin, int64_t end) {
  constexpr int64_t kGroup = kQuantBlock;
  for (int64_t row = begin; row < end; ++row) {
    const auto* __restrict gate = row_of<const typename Format::Storage>(p.gate_up, row);
    const auto* __restrict up = gate + p.width;
    float* s = row_of<float>(p.s, row);
    for (int64_t column = 0; column < p.width; column += kGroup, s += p.s.column_stride) {
      const int64_t count = smaller(kGroup, p.width - column);
      float h[kGroup];
      for (int64_t i = 0; i < count; ++i) h[i] = silu(Format::load(gate[column + i])) * Format::load(up[column + i]);
      const uint32_t bits = max_abs_bits<Float32>(h, count, 0);
      const float amax = bits_float(bits > kInfBits ? kNanBits : bits);
      *s = (amax < kMinAmax ? kMinAmax : amax) / kMaxE4M3;
      quantise_run<Float32>(h, row_of<uint8_t>(p.q, row) + column, count, *s);
    }
  }
}

// One copy of every kernel per instruction set.
#define LC_DEFINE_KERNELS(name, ...)                                                                 \
  template <class Format>                                                                            \
  __VA_ARGS__ void quant_##name(const QuantParams& p, int64_t begin, int64_t end) {                  \
    quant_body<Format>(p, begin, end);                                                               \
  }                                                                                                  \
  template <class Format>                                                                            \
  __VA_ARGS__ void dequant_##name(const DequantParams& p, int64_t begin, int64_t end) {              \
    dequant_body<Format>(p, begin, end);                                                             \
  }                                                                                                  \
  template <class Format>                                                                            \
  __VA_ARGS__ void silu_and_mul_##name(const SiluAndMulQuantParams& p, int64_t begin, int64_t end) { \
    silu_and_mul_body<Format>(p, begin, end);                                                        \
  }

LC_DEFINE_KERNELS(baseline, )
LC_DEFINE_KERNELS(avx2, LC_TARGET_AVX2)
LC_DEFINE_KERNELS(avx512, LC_TARGET_AVX512)

}  // namespace

void quant_fp8(const QuantParams& params, int64_t begin, int64_t end) {
  visit_format(params.x_dtype, [&](auto format) {
    using Format = decltype(format);
    switch (active_isa()) {
      case Isa::kBaseline: return quant_baseline<Format>(params, begin, end);
      case Isa::kAvx2: return quant_avx2<Format>(params, begin, end);
      case Isa::kAvx512: return quant_avx512<Format>(params, begin, end);
    }
  });
}

void silu_and_mul_quant_fp8(const SiluAndMulQuantParams& params, int64_t begin, int64_t end) {
  visit_format(params.dtype, [&](auto format) {
    using Format = decltype(format);
    switch (active_isa()) {
      case Isa::kBaseline: return silu_and_mul_baseline<Format>(params, begin, end);
      case Isa::kAvx2: return silu_and_mul_avx2<Format>(params, begin, end);
      case Isa::kAvx512: return silu_and_mul_avx512<Format>(params, begin, end);
    }
  });
}

void dequant_fp8(const DequantParams& params, int64_t begin, int64_t end) {
  visit_format(params.out_dtype, [&](auto format) {
    using Format = decltype(format);
    switch (active_isa()) {
      case Isa::kBaseline: return dequant_baseline<Format>(params, begin, end);
      case Isa::kAvx2: return dequant_avx2<Format>(params, begin, end);
      case Isa::kAvx512: return dequant_avx512<Format>(params, begin, end);
    }
  });
}

}  // namespace longcat_ops::cpu
