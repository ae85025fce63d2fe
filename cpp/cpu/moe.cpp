#include "cpu/moe.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "common/replica_hash.h"
#include "cpu/dispatch.h"
#include "cpu/exp.h"
#include "cpu/isa.h"
#include "cpu/lanes.h"

namespace longcat_ops::cpu {
namespace {

// p = exp(x - max) / sum in a fixed order of summation. A NaN, a +inf or a row of -inf makes every p a NaN.
template <class Format>
LC_INLINE void softmax(const typename Format::Storage* __restrict x, int64_t count, float* __restrict p) {
  float top = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < count; ++i) {
    p[i] = Format::load(x[i]);
    top = p[i] > top ? p[i] : top;
  }
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) {
      p[i + lane] = exp_f32(p[i + lane] - top);
      lanes[lane] += p[i + lane];
    }
  for (int lane = 0; i < count; ++i, ++lane) {
    p[i] = exp_f32(p[i] - top);
    lanes[lane] += p[i];
  }
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  for (i = 0; i < count; ++i) p[i] = p[i] / lanes[0];
}

// An integer that orders by larger score, then by lower id. Scores are not NaN.
LC_INLINE uint64_t selection_key(float score, int64_t id) {
  const uint32_t bits = float_bits(score + 0.0f);  // -0 becomes +0
  const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return uint64_t(ordered) << 32 | (0xffffffffu - uint32_t(id));
}

// The k largest keys, in falling order.
LC_INLINE void select_top(const float* p, const float* bias, int64_t experts, int64_t k, uint64_t* best) {
  int64_t held = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const uint64_t key = selection_key(p[e] + bias[e], e);
    if (held == k && key < best[k - 1]) continue;
    int64_t at = held < k ? held++ : k - 1;
    for (; at > 0 && best[at - 1] < key; --at) best[at] = best[at - 1];
    best[at] = key;
  }
}

template <class Format>
LC_INLINE void route_body(const RouteParams& r, int64_t begin, int64_t end) {
  std::vector<float> p(r.experts);
  std::vector<uint64_t> best(r.top_k);
  for (int64_t t = begin; t < end; ++t) {
    int32_t* ids = r.ids + t * r.top_k;
    float* weights = r.weights + t * r.top_k;
    bool bad = false;
    if (t < r.num_valid) {
      softmax<Format>(row_of<const typename Format::Storage>(r.logits, t), r.experts, p.data());
      for (int64_t e = 0; e < r.experts; ++e) bad |= std::isnan(p[e] + r.bias[e]);
    }
    if (bad || t >= r.num_valid) {
      std::fill_n(ids, r.top_k, -1);
      std::fill_n(weights, r.top_k, 0.0f);
      r.zero_weight[t] = bad ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
      r.num_real[t] = 0;
      if (bad) std::atomic_ref(*r.errors).fetch_add(1, std::memory_order_relaxed);
      continue;
    }
    select_top(p.data(), r.bias, r.experts, r.top_k, best.data());
    float zero_weight = 0;
    int num_real = 0;
    for (int64_t k = 0; k < r.top_k; ++k) {
      const auto id = static_cast<int32_t>(0xffffffffu - uint32_t(best[k]));
      const float weight = p[id] * r.scale;
      const bool zero = id >= r.experts - r.num_zero_experts;
      ids[k] = zero ? -1 : id;
      weights[k] = zero ? 0.0f : weight;
      zero_weight += zero ? weight : 0.0f;
      num_real += !zero;
      std::atomic_ref(r.counts[id]).fetch_add(1, std::memory_order_relaxed);
    }
    r.zero_weight[t] = zero_weight;
    r.num_real[t] = static_cast<uint8_t>(num_real);
  }
}

// NOTE: a choice without a row adds +0, as in every backend, so that a sum of nothing is +0 everywhere.
template <class YFormat, class XFormat>
LC_INLINE void combine_body(const CombineParams& c, int64_t begin, int64_t end) {
  std::vector<float> sums(c.width);
  for (int64_t t = begin; t < end; ++t) {
    float* __restrict sum = sums.data();
    for (int64_t k = 0; k < c.top_k; ++k) {
      const int64_t row = c.row_of[t * c.top_k + k];
      if (row < 0 || row >= c.rows) {
        for (int64_t i = 0; i < c.width; ++i) sum[i] = k == 0 ? 0.0f : sum[i] + 0.0f;
        continue;
      }
      const float weight = c.weights[t * c.top_k + k];
      const auto* __restrict y = row_of<const typename YFormat::Storage>(c.y, row);
      if (k == 0)
        for (int64_t i = 0; i < c.width; ++i) sum[i] = YFormat::load(y[i]) * weight;
      else
        for (int64_t i = 0; i < c.width; ++i) sum[i] = sum[i] + YFormat::load(y[i]) * weight;
    }
    const auto* __restrict x = row_of<const typename XFormat::Storage>(c.x, t);
    for (int64_t i = 0; i < c.width; ++i) sum[i] = sum[i] + XFormat::load(x[i]) * c.zero_weight[t];
    if (c.add.data) {
      const auto* __restrict add = row_of<const typename XFormat::Storage>(c.add, t);
      for (int64_t i = 0; i < c.width; ++i) sum[i] = sum[i] + XFormat::load(add[i]);
    }
    auto* __restrict out = row_of<typename XFormat::Storage>(c.out, t);
    for (int64_t i = 0; i < c.width; ++i) out[i] = XFormat::store(sum[i]);
  }
}

// One copy of every kernel per instruction set.
#define LC_DEFINE_KERNELS(name, ...)                                                    \
  template <class Format>                                                               \
  __VA_ARGS__ void route_##name(const RouteParams& p, int64_t begin, int64_t end) {     \
    route_body<Format>(p, begin, end);                                                  \
  }                                                                                     \
  template <class YFormat, class XFormat>                                               \
  __VA_ARGS__ void combine_##name(const CombineParams& p, int64_t begin, int64_t end) { \
    combine_body<YFormat, XFormat>(p, begin, end);                                      \
  }

LC_DEFINE_KERNELS(baseline, )
LC_DEFINE_KERNELS(avx2, LC_TARGET_AVX2)
LC_DEFINE_KERNELS(avx512, LC_TARGET_AVX512)

}  // namespace

void moe_route(const RouteParams& params, int64_t begin, int64_t end) {
  visit_format(params.dtype, [&](auto format) {
    using Format = decltype(format);
    switch (active_isa()) {
      case Isa::kBaseline: return route_baseline<Format>(params, begin, end);
      case Isa::kAvx2: return route_avx2<Format>(params, begin, end);
      case Isa::kAvx512: return route_avx512<Format>(params, begin, end);
    }
  });
}

void moe_combine(const CombineParams& params, int64_t begin, int64_t end) {
  visit_format(params.y_dtype, [&](auto y_format) {
    visit_format(params.x_dtype, [&](auto x_format) {
      using Y = decltype(y_format);
      using X = decltype(x_format);
      switch (active_isa()) {
        case Isa::kBaseline: return combine_baseline<Y, X>(params, begin, end);
        case Isa::kAvx2: return combine_avx2<Y, X>(params, begin, end);
        case Isa::kAvx512: return combine_avx512<Y, X>(params, begin, end);
      }
    });
  });
}

void moe_place(const PlaceParams& p, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const uint32_t hash = replica_hash(static_cast<uint32_t>(t), p.layer);
    for (int64_t i = t * p.top_k; i < (t + 1) * p.top_k; ++i) {
      const int64_t id = p.ids[i];
      const int64_t replicas = id >= 0 && id < p.experts ? p.replicas[id] : 0;
      const bool placed = replicas >= 1 && replicas <= p.max_replicas;
      p.out[i] = placed ? p.slots[id * p.max_replicas + hash % replicas] : -1;
    }
  }
}

void moe_plan(const PlanParams& p) {
  const int64_t choices = p.tokens * p.top_k;
  // NOTE: a choice whose weight is NaN has a row, so that the NaN shows.
  const auto has_row = [&](int64_t i) {
    return p.ids[i] >= 0 && p.ids[i] < p.num_local && (!p.weights || p.weights[i] != 0.0f);
  };
  std::vector<int64_t> next(p.num_local + 1, 0);
  for (int64_t i = 0; i < choices; ++i)
    if (has_row(i)) ++next[p.ids[i] + 1];
  for (int64_t g = 0; g < p.num_local; ++g) next[g + 1] += next[g];
  for (int64_t g = 0; g <= p.num_local; ++g) p.offsets[g] = static_cast<int32_t>(std::min(next[g], p.rows));
  std::fill_n(p.src_of, p.rows, -1);
  for (int64_t i = 0; i < choices; ++i) {
    p.row_of[i] = -1;
    if (!has_row(i)) continue;
    const int64_t row = next[p.ids[i]]++;
    if (row >= p.rows) continue;  // a token that names an expert twice
    p.row_of[i] = static_cast<int32_t>(row);
    p.src_of[row] = static_cast<int32_t>(i);
  }
}

void moe_permute(const PermuteParams& p, int64_t begin, int64_t end) {
  const int64_t bytes = element_size(p.dtype), step = bytes * p.out.column_stride;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t token = p.src_of[row] / p.top_k;
    if (p.src_of[row] < 0 || token >= p.tokens) continue;
    const auto* from = static_cast<const uint8_t*>(p.x.data) + token * p.x.row_stride * bytes;
    auto* to = static_cast<uint8_t*>(p.out.data) + row * p.out.row_stride * bytes;
    if (step == bytes)
      std::memcpy(to, from, p.width * bytes);
    else
      for (int64_t i = 0; i < p.width; ++i) std::memcpy(to + i * step, from + i * bytes, bytes);
  }
}

}  // namespace longcat_ops::cpu
