#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "common/numeric.h"
#include "cpu/bf16_gemm.h"
#include "cpu/dispatch.h"
#include "cpu/exp.h"
#include "cpu/isa.h"
#include "cpu/lanes.h"
#include "cpu/mla.h"

namespace longcat_ops::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

namespace baseline {
#define LC_BODY LC_INLINE
#define LC_WIDTH 4
#define LC_COLUMNS 2
#include "cpu/mla_decode_body.inc"
#undef LC_COLUMNS
#undef LC_WIDTH
#undef LC_BODY
}  // namespace baseline
namespace avx2 {
#define LC_BODY LC_TARGET_AVX2 LC_INLINE
#define LC_WIDTH 8
#define LC_COLUMNS 2
#include "cpu/mla_decode_body.inc"
#undef LC_COLUMNS
#undef LC_WIDTH
#undef LC_BODY
}  // namespace avx2
namespace avx512 {
#define LC_BODY LC_TARGET_AVX512 LC_INLINE
#define LC_WIDTH 16
#define LC_COLUMNS 4
#include "cpu/mla_decode_body.inc"
#undef LC_COLUMNS
#undef LC_WIDTH
#undef LC_BODY
}  // namespace avx512

// Of a block of heads: the largest score, the sum of weights relative to it, and the weighted sum of rows.
struct Partial {
  float *largest, *weight, *sums;  // [heads], [heads], [heads, latent]

  void clear(int64_t heads, int64_t latent) {
    std::fill_n(largest, heads, -kInfinity);
    std::fill_n(weight, heads, 0.0f);
    std::fill_n(sums, heads * latent, 0.0f);
  }
};

// This thread's memory: the scores of a page, the split at hand, and the splits before it.
struct Scratch {
  float* scores;  // [kHeadBlock, kPageRows]
  Partial split, all;
};

Scratch make_scratch(int64_t latent) {
  thread_local std::vector<float> memory;
  const size_t partial = kHeadBlock * (2 + latent);
  memory.resize(std::max(memory.size(), kHeadBlock * kPageRows + 2 * partial));
  float* next = memory.data();
  const auto take = [&](int64_t count) { return std::exchange(next, next + count); };
  const auto take_partial = [&] { return Partial{take(kHeadBlock), take(kHeadBlock), take(kHeadBlock * latent)}; };
  float* scores = take(kHeadBlock * kPageRows);
  const Partial split = take_partial();
  return {scores, split, take_partial()};
}

// Multiplies what a head has by exp(its largest score - another).
LC_INLINE void scale_to(const Partial& p, int64_t head, int64_t latent, float largest) {
  if (p.largest[head] == largest) return;
  const float factor = p.largest[head] == -kInfinity ? 0.0f : exp_f32(p.largest[head] - largest);
  p.largest[head] = largest;
  p.weight[head] *= factor;
  for (int64_t c = 0; c < latent; ++c) p.sums[head * latent + c] *= factor;
}

// `count` rows of a page.
#define LC_DEFINE_KERNEL(isa, ...)                                                                       \
  template <class Format>                                                                                \
  __VA_ARGS__ void add_page_##isa(const Scratch& s, int64_t heads, const typename Format::Storage* rows, \
                                  int64_t row_stride, int64_t count, int64_t latent, float scale) {      \
    for (int64_t h = 0; h < heads; ++h) {                                                                \
      float largest = s.split.largest[h];                                                                \
      const float weight = isa::weigh(s.scores + h * kPageRows, count, scale, largest);                  \
      scale_to(s.split, h, latent, largest);                                                             \
      s.split.weight[h] += weight;                                                                       \
    }                                                                                                    \
    isa::add_rows<Format>(s.scores, heads, rows, row_stride, count, latent, s.split.sums, latent);       \
  }

LC_DEFINE_KERNEL(baseline, )
LC_DEFINE_KERNEL(avx2, LC_TARGET_AVX2)
LC_DEFINE_KERNEL(avx512, LC_TARGET_AVX512)

template <class Format, class... Arguments>
void add_page(const Arguments&... arguments) {
  switch (active_isa()) {
    case Isa::kBaseline: return add_page_baseline<Format>(arguments...);
    case Isa::kAvx2: return add_page_avx2<Format>(arguments...);
    case Isa::kAvx512: return add_page_avx512<Format>(arguments...);
  }
}

// all += split
void merge(const Scratch& s, int64_t heads, int64_t latent) {
  for (int64_t h = 0; h < heads; ++h) {
    const float largest = std::max(s.all.largest[h], s.split.largest[h]);
    scale_to(s.all, h, latent, largest);
    scale_to(s.split, h, latent, largest);
    s.all.weight[h] += s.split.weight[h];
    for (int64_t c = 0; c < latent; ++c) s.all.sums[h * latent + c] += s.split.sums[h * latent + c];
  }
}

template <class Format>
bool attend(const MlaDecodeParams& p, const Scratch& s, int64_t token, int64_t head, int64_t heads) {
  using Storage = typename Format::Storage;
  const int32_t sequence = p.sequence[token], position = p.position[token];
  const Matrices& rows = p.pages.rows;
  const int64_t length = int64_t{position} + 1;
  Scratch here = s;
  here.all.clear(heads, p.latent);
  for (int64_t first = 0; first < length; first += p.split_rows) {
    here.split.clear(heads, p.latent);
    const int64_t end = smaller(length, first + p.split_rows);
    for (int64_t at = first; at < end; at += kPageRows) {
      const int64_t page = p.pages.page_of(sequence, at), count = smaller(kPageRows, end - at);
      if (page < 0) return false;
      auto* start = static_cast<Storage*>(rows.data) + page * rows.stride;
      const Bf16GemmParams scores{
          .a = {static_cast<Storage*>(p.q.data) + token * p.q.stride + head * p.q.row_stride, p.q.row_stride, 1},
          .b = {start, rows.row_stride, 1},
          .out = {s.scores, kPageRows, 1},
          .dtype = p.dtype,
          .out_dtype = DType::kFloat32,
          .row_begin = 0,
          .row_end = heads,
          .n = kPageRows,
          .k = p.pages.width,
      };
      bf16_gemm_nt(scores, 0, ceil_div(count, kBf16GemmTile));
      add_page<Format>(here, heads, start, rows.row_stride, count, p.latent, p.scale);
    }
    merge(here, heads, p.latent);
  }
  return true;
}

template <class Format>
void decode(const MlaDecodeParams& p, int64_t begin, int64_t end) {
  const int64_t blocks = ceil_div(p.heads, kHeadBlock);
  const Scratch scratch = make_scratch(p.latent);
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t token = unit / blocks, head = unit % blocks * kHeadBlock, heads = smaller(kHeadBlock, p.heads - head);
    const bool is_padding = p.position[token] < 0;
    const bool is_known = !is_padding && p.pages.has(p.sequence[token], p.position[token]) &&
                          attend<Format>(p, scratch, token, head, heads);
    for (int64_t h = 0; h < heads; ++h) {
      auto* out =
          static_cast<typename Format::Storage*>(p.out.data) + token * p.out.stride + (head + h) * p.out.row_stride;
      const Partial& all = scratch.all;
      for (int64_t c = 0; c < p.latent; ++c) {
        const float value = is_known ? all.sums[h * p.latent + c] / all.weight[h] : bits_float(kNanBits);
        out[c] = Format::store(is_padding ? 0.0f : value);
      }
    }
  }
}

}  // namespace

void mla_decode(const MlaDecodeParams& params, int64_t begin, int64_t end) {
  params.dtype == DType::kBFloat16 ? decode<BFloat16>(params, begin, end) : decode<Float32>(params, begin, end);
}

}  // namespace longcat_ops::cpu
