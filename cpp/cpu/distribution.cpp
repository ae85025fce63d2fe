#include "cpu/distribution.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "cpu/dispatch.h"
#include "cpu/exp.h"
#include "cpu/isa.h"
#include "cpu/lanes.h"

namespace longcat_ops::cpu {
namespace {

constexpr int64_t kChunk = 1024;     // weights between two entries of the running sum
constexpr double kMassError = 1e-6;  // more than sums of one row in two orders differ
constexpr int kBinShift = 50;        // bits of a probability that its bin ignores: four bins to a power of 2
constexpr size_t kBins = 4096;       // 1.0 lies in bin 4092

uint64_t bin_of(double probability) { return std::bit_cast<uint64_t>(probability) >> kBinShift; }

LC_INLINE void weigh_body(const float* __restrict x, int64_t count, double top, double temperature,
                          double* __restrict weights) {
  for (int64_t i = 0; i < count; ++i) weights[i] = exp_f64((static_cast<double>(x[i]) - top) / temperature);
}

void weigh_baseline(const float* x, int64_t count, double top, double temperature, double* weights) {
  weigh_body(x, count, top, temperature, weights);
}
LC_TARGET_AVX2 void weigh_avx2(const float* x, int64_t count, double top, double temperature, double* weights) {
  weigh_body(x, count, top, temperature, weights);
}
LC_TARGET_AVX512 void weigh_avx512(const float* x, int64_t count, double top, double temperature, double* weights) {
  weigh_body(x, count, top, temperature, weights);
}

void weigh(const float* x, int64_t count, double top, double temperature, double* weights) {
  switch (active_isa()) {
    case Isa::kBaseline: return weigh_baseline(x, count, top, temperature, weights);
    case Isa::kAvx2: return weigh_avx2(x, count, top, temperature, weights);
    case Isa::kAvx512: return weigh_avx512(x, count, top, temperature, weights);
  }
}

}  // namespace

float top_of(const float* x, int64_t count) {
  float lanes[kLanes];
  int32_t odd[kLanes] = {};
  std::fill_n(lanes, kLanes, -std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = x[i + lane];
      lanes[lane] = value > lanes[lane] ? value : lanes[lane];
      odd[lane] |= value != value;
    }
  for (int lane = 0; i < count; ++i, ++lane) {
    lanes[lane] = std::max(lanes[lane], x[i]);
    odd[lane] |= x[i] != x[i];
  }
  if (std::any_of(odd, odd + kLanes, [](int32_t is_odd) { return is_odd != 0; }))
    return std::numeric_limits<float>::quiet_NaN();
  return *std::max_element(lanes, lanes + kLanes);
}

int64_t first_of(const float* x, int64_t count, float value) { return std::find(x, x + count, value) - x; }

Distribution& scratch_of_thread() {
  thread_local Distribution scratch;
  return scratch;
}

void Distribution::assign(const float* x, int64_t count, float top, const Cuts& cuts) {
  count_ = count;
  if (static_cast<int64_t>(weights_.size()) < count) weights_.resize(count);
  weigh(x, count, top, cuts.temperature, weights_.data());
  add_up();
  if ((cuts.top_k > 0 && cuts.top_k < count) || cuts.top_p < 1) cut(cuts);
}

void Distribution::add_up() {
  before_.clear();
  total_ = 0;
  for (int64_t begin = 0; begin < count_; begin += kChunk) {
    before_.push_back(total_);
    for (int64_t i = begin, end = smaller(begin + kChunk, count_); i < end; ++i) total_ += weights_[i];
  }
}

void Distribution::cut(const Cuts& cuts) {
  double* p = weights_.data();
  for (int64_t i = 0; i < count_; ++i) p[i] /= total_;
  const bool by_count = cuts.top_k > 0 && cuts.top_k < count_, by_mass = cuts.top_p < 1;
  if (by_count)
    rank(cuts.top_k, std::numeric_limits<double>::infinity());
  else
    rank(count_, std::max(cuts.top_p, 0.0));  // the likeliest token always stays
  if (by_mass) {
    double whole = by_count ? 0 : 1, before = 0;
    if (by_count)
      for (const Ranked& token : ranked_) whole += token.weight;
    size_t kept = 0;
    for (; kept < ranked_.size() && (kept == 0 || before < cuts.top_p); ++kept) before += ranked_[kept].weight / whole;
    ranked_.resize(kept);
  }
  std::fill_n(p, count_, 0.0);
  for (const Ranked& token : ranked_) p[token.id] = token.weight;
  add_up();
}

void Distribution::rank(int64_t count, double mass) {
  // The bins of the largest, down to where there are enough of them or enough mass.
  bins_.assign(kBins, {});
  for (int64_t i = 0; i < count_; ++i) {
    Bin& bin = bins_[bin_of(weights_[i])];
    ++bin.tokens;
    bin.mass += weights_[i];
  }
  uint64_t lowest = kBins;
  Bin above{};
  while (lowest > 0 && above.tokens < count && above.mass <= mass + kMassError) {
    --lowest;
    above.tokens += bins_[lowest].tokens;
    above.mass += bins_[lowest].mass;
  }
  ranked_.clear();
  for (int64_t i = 0; i < count_; ++i)
    if (bin_of(weights_[i]) >= lowest) ranked_.push_back({weights_[i], static_cast<int32_t>(i)});
  const auto order = [](const Ranked& a, const Ranked& b) {
    return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
  };
  if (count < static_cast<int64_t>(ranked_.size())) {
    std::nth_element(ranked_.begin(), ranked_.begin() + count, ranked_.end(), order);
    ranked_.resize(count);
  }
  std::sort(ranked_.begin(), ranked_.end(), order);
}

double Distribution::entropy(const float* x, float top, int64_t count) {
  const double log_total = log_f64(total_);
  double sum = 0;
  const auto add = [&](int64_t i) {
    if (weights_[i] > 0) sum += weights_[i] * (log_total + (static_cast<double>(top) - x[i]));
  };
  for (int64_t i = 0; i < count_; ++i) weights_[i] /= total_;
  if (count < count_) {
    rank(count, std::numeric_limits<double>::infinity());
    for (const Ranked& token : ranked_) add(token.id);
  } else {
    for (int64_t i = 0; i < count_; ++i) add(i);
  }
  return sum;
}

void Distribution::round_to(float* probs) {
  for (int64_t i = 0; i < count_; ++i) {
    probs[i] = static_cast<float>(weights_[i] / total_);
    weights_[i] = probs[i];
  }
  add_up();
}

void Distribution::subtract(const float* q) {
  bool is_left = false;
  for (int64_t i = 0; i < count_ && !is_left; ++i) is_left = weights_[i] / total_ > q[i];
  if (!is_left) return;
  for (int64_t i = 0; i < count_; ++i) {
    const double rest = weights_[i] / total_ - q[i];
    weights_[i] = rest > 0 ? rest : 0;
  }
  add_up();
}

int64_t Distribution::draw(double uniform) const {
  const double wanted = uniform * total_;
  const int64_t chunk = std::upper_bound(before_.begin(), before_.end(), wanted) - before_.begin() - 1;
  double sum = before_[chunk];
  for (int64_t i = chunk * kChunk, end = smaller(i + kChunk, count_); i < end; ++i)
    if ((sum += weights_[i]) > wanted) return i;
  // The sum before the next chunk, if there is one, exceeds `wanted`: so this is the last, and rounding went past it.
  int64_t last = count_ - 1;
  while (last > 0 && !(weights_[last] > 0)) --last;
  return last;
}

}  // namespace longcat_ops::cpu
