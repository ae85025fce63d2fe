#include "cpu/gemm.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "common/constants.h"
#include "common/numeric.h"
#include "cpu/dispatch.h"
#include "cpu/e4m3_codes.h"
#include "cpu/exp.h"
#include "cpu/isa.h"
#include "cpu/lanes.h"

namespace longcat_ops::cpu {
namespace {

constexpr int kBlock = kQuantBlock;  // columns of k per scale
constexpr int kRows = 8;             // rows of a at once: their partial sums stay in registers
constexpr int kGateRows = 8;         // rows of gate, then of up, in an interleaved weight

constexpr int kAhead = 4;  // rows of a weight that are fetched before they are used

// Up to kRows rows of a as float32, with k filled up to whole blocks with zeros, and their scales.
struct Panel {
  float* values;  // [kRows, blocks * kBlock]
  float* scales;  // [kRows, blocks]
  int64_t rows, blocks;
  float largest[kRows];  // each row's largest scale
};

// One row of a weight, and its scales.
struct WeightRow {
  const uint8_t* codes;
  int64_t stride;  // to the next row
  const float* scales;
  int64_t scale_stride;
  float largest_scale;
};

// A block of e4m3 products sums to less than 2^25, so with scales up to 2^101 / blocks every partial sum is finite.
LC_INLINE float safe_scale(int64_t blocks) { return 0x1p101f / static_cast<float>(blocks); }

// Largest magnitude of some scales; NaN if one is NaN.
LC_INLINE float largest_of(const float* scales, int64_t stride, int64_t count) {
  uint32_t largest = 0;  // bits of magnitudes order like these, NaN above inf
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = float_bits(scales[i * stride]) & kAbsMask;
    largest = bits > largest ? bits : largest;
  }
  return bits_float(largest);
}

// Row i of the panel times one weight row, if scales are so large that sums may overflow. The order is the CUDA
// kernel's, so that both give inf and NaN in the same places: a block's sum, then one FMA with its scale.
float dot_by_blocks(const Panel& panel, int64_t i, const WeightRow& b, int64_t k) {
  float sum = 0.0f;
  for (int64_t block = 0; block < panel.blocks; ++block) {
    const float* a = panel.values + (i * panel.blocks + block) * kBlock;
    double partial = 0.0;  // exact
    for (int64_t j = 0; j < smaller(kBlock, k - block * kBlock); ++j)
      partial += static_cast<double>(a[j]) * Float8E4M3::load(b.codes[block * kBlock + j]);
    const float scale = panel.scales[i * panel.blocks + block] * b.scales[block * b.scale_stride];
    sum = std::fma(static_cast<float>(partial), scale, sum);
  }
  return sum;
}

namespace baseline {
using namespace e4m3::portable;
#define LC_BODY LC_INLINE
#include "cpu/gemm_body.inc"
#undef LC_BODY
}  // namespace baseline
namespace avx2 {
using namespace e4m3::avx2;
#define LC_BODY LC_TARGET_AVX2 LC_INLINE
#include "cpu/gemm_body.inc"
#undef LC_BODY
}  // namespace avx2
namespace avx512 {
using namespace e4m3::avx512;
#define LC_BODY LC_TARGET_AVX512 LC_INLINE
#include "cpu/gemm_body.inc"
#undef LC_BODY
}  // namespace avx512

// One entry of every kernel per instruction set.
#define LC_DEFINE_KERNELS(isa, ...)                                                                   \
  template <class Format>                                                                             \
  __VA_ARGS__ void gemm_##isa(const Fp8GemmParams& p, Panel& panel, int64_t begin, int64_t end) {     \
    isa::gemm<Format>(p, panel, begin, end);                                                          \
  }                                                                                                   \
  __VA_ARGS__ void swiglu_##isa(const Fp8SwigluParams& p, Panel& panel, int64_t begin, int64_t end) { \
    isa::swiglu(p, panel, begin, end);                                                                \
  }

LC_DEFINE_KERNELS(baseline, )
LC_DEFINE_KERNELS(avx2, LC_TARGET_AVX2)
LC_DEFINE_KERNELS(avx512, LC_TARGET_AVX512)

// A panel in this thread's own memory.
Panel make_panel(int64_t k) {
  thread_local std::vector<float> memory;
  const int64_t blocks = ceil_div(k, kBlock);
  memory.resize(kRows * blocks * (kBlock + 1));
  return {memory.data(), memory.data() + kRows * blocks * kBlock, 0, blocks, {}};
}

}  // namespace

void fp8_gemm_nt(const Fp8GemmParams& params, int64_t begin, int64_t end) {
  Panel panel = make_panel(params.k);
  visit_format(params.out_dtype, [&](auto format) {
    using Format = decltype(format);
    switch (active_isa()) {
      case Isa::kBaseline: return gemm_baseline<Format>(params, panel, begin, end);
      case Isa::kAvx2: return gemm_avx2<Format>(params, panel, begin, end);
      case Isa::kAvx512: return gemm_avx512<Format>(params, panel, begin, end);
    }
  });
}

void fp8_swiglu_gemm_nt(const Fp8SwigluParams& params, int64_t begin, int64_t end) {
  Panel panel = make_panel(params.k);
  switch (active_isa()) {
    case Isa::kBaseline: return swiglu_baseline(params, panel, begin, end);
    case Isa::kAvx2: return swiglu_avx2(params, panel, begin, end);
    case Isa::kAvx512: return swiglu_avx512(params, panel, begin, end);
  }
}

}  // namespace longcat_ops::cpu
