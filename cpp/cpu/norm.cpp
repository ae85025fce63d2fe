#include "cpu/norm.h"

#include <cmath>

#include "cpu/dispatch.h"
#include "cpu/isa.h"

namespace longcat_ops::cpu {
namespace {

constexpr int kLanes = 32;  // two 512-bit or four 256-bit registers of partial sums

// NOTE: element i always goes to lane i % kLanes, and lanes are folded by halves. So the sum has one order of
// evaluation for every instruction set, row and number of rows.
template <class Format>
LC_INLINE float sum_of_squares(const typename Format::Storage* x, int64_t count) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = Format::load(x[i + lane]);
      lanes[lane] += value * value;
    }
  for (int lane = 0; i < count; ++i, ++lane) {
    const float value = Format::load(x[i]);
    lanes[lane] += value * value;
  }
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

template <class Format>
LC_INLINE void rms_norm_body(const RmsNormParams& p, int64_t begin, int64_t end) {
  using Storage = typename Format::Storage;
  const float* __restrict weight = p.weight;
  for (int64_t row = begin; row < end; ++row) {
    const Storage* __restrict x = static_cast<const Storage*>(p.x.data) + row * p.x.row_stride;
    Storage* __restrict y = static_cast<Storage*>(p.y.data) + row * p.y.row_stride;
    const float mean = sum_of_squares<Format>(x, p.columns) / static_cast<float>(p.columns);
    const float scale = 1.0f / std::sqrt(mean + p.eps);
    for (int64_t i = 0; i < p.columns; ++i) y[i] = Format::store(Format::load(x[i]) * scale * weight[i]);
  }
}

template <class Format>
void rms_norm_baseline(const RmsNormParams& p, int64_t begin, int64_t end) {
  rms_norm_body<Format>(p, begin, end);
}
template <class Format>
LC_TARGET_AVX2 void rms_norm_avx2(const RmsNormParams& p, int64_t begin, int64_t end) {
  rms_norm_body<Format>(p, begin, end);
}
template <class Format>
LC_TARGET_AVX512 void rms_norm_avx512(const RmsNormParams& p, int64_t begin, int64_t end) {
  rms_norm_body<Format>(p, begin, end);
}

template <class Format>
void add_rows(const AddParams& p, int64_t begin, int64_t end) {
  using Storage = typename Format::Storage;
  for (int64_t row = begin; row < end; ++row) {
    const Storage* __restrict a = static_cast<const Storage*>(p.a.data) + row * p.a.row_stride;
    const Storage* __restrict b = static_cast<const Storage*>(p.b.data) + row * p.b.row_stride;
    Storage* __restrict out = static_cast<Storage*>(p.out.data) + row * p.out.row_stride;
    for (int64_t i = 0; i < p.columns; ++i) out[i] = Format::store(Format::load(a[i]) + Format::load(b[i]));
  }
}

}  // namespace

void add(const AddParams& params, int64_t begin, int64_t end) {
  visit_format(params.dtype, [&](auto format) { add_rows<decltype(format)>(params, begin, end); });
}

void rms_norm(const RmsNormParams& params, int64_t begin, int64_t end) {
  visit_format(params.dtype, [&](auto format) {
    using Format = decltype(format);
    switch (active_isa()) {
      case Isa::kBaseline: return rms_norm_baseline<Format>(params, begin, end);
      case Isa::kAvx2: return rms_norm_avx2<Format>(params, begin, end);
      case Isa::kAvx512: return rms_norm_avx512<Format>(params, begin, end);
    }
  });
}

}  // namespace longcat_ops::cpu
