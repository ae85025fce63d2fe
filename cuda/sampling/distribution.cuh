// The distribution of one row of logits, in float64: softmax(x / temperature), the top_k largest of it, and of their
// order the tokens before which there is less mass than top_p.
//
// Each warp of a cluster takes a run of neighbouring ids, 32 at a time. Weights are computed anew in each pass, since a
// row's do not fit anywhere; they have the bits of the CPU kernels. Sums have the order of lanes, warps and runs, which
// depends on the width of a row alone.
//
// A cut is a search for the logit at its edge by quarters of an interval of keys, which are logits as integers, until
// one that occurs is left: at most 16 passes, each of which reads the row and weighs what lies in the interval. For
// 131072 normal numbers there are 11 to 15, rounded to bf16 9.
#pragma once

#include "sampling/draws.cuh"
#include "sampling/exchange.cuh"

namespace longcat_ops::sampling {

// exp of x <= 0 within 2 ulp where it is normal, without a fused multiply-add; below -746 it is 0. The steps of
// cpp/cpu/exp.h.
LC_DEVICE double exp_f64(double x) {
  constexpr double kRound = 0x1.8p52;  // adding it rounds to an integer that lies in the low bits
  const auto bits = [](double value) {
    uint64_t word;
    memcpy(&word, &value, sizeof word);
    return word;
  };
  const auto power = [](uint64_t biased) {
    const uint64_t word = biased << 52;
    double value;
    memcpy(&value, &word, sizeof value);
    return value;
  };
  x = x < -746.0 ? -746.0 : x;
  const double shifted = x * 0x1.71547652b82fep0 + kRound;
  const uint64_t n = bits(shifted) - bits(kRound) + 2048;  // not negative
  const double whole = shifted - kRound;
  const double r = (x - whole * 0x1.62e42feep-1) - whole * 0x1.a39ef35793c76p-33;
  double p = 1.0 / 6227020800;
  p = p * r + 1.0 / 479001600;
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  const double y = p * (r * r) + r + 1.0;
  const uint64_t half = n >> 1;  // in two steps, so that subnormal results are reached
  return y * power(half - 1) * power(n - half - 1);
}

// A row of finite logits and the ids of this warp.
struct RowView {
  const float* x;
  uint32_t width, begin, end;
  double top, temperature;
};

LC_DEVICE RowView view_of(const Exchange& e, const float* x, uint32_t width, const Best& top, float temperature) {
  const uint32_t step = 32 * e.warps, run = (width + step - 1) / step * 32, begin = e.warp * run;
  const uint32_t end = begin + run < width ? begin + run : width;
  return {x, width, begin < width ? begin : width, end, value_of(top.key), temperature};
}

LC_DEVICE double weigh(const RowView& r, float x) { return exp_f64((static_cast<double>(x) - r.top) / r.temperature); }

// take(id, logit) for all ids of the warp, by all lanes together; behind the last id the logit is minus infinity, of
// weight 0: it counts as such logits do, and no weight of 0 is ever drawn. Four loads are in flight. NOTE: not
// unrolled, since weights take much code and their passes are many.
template <class Take>
LC_DEVICE void visit_logits(const RowView& r, Take take) {
  constexpr uint32_t kLoads = 4;
  const auto load = [&](uint32_t id) {
    return id < r.end ? ptx::load_global(r.x + id) : device::bits_float(kMinusInfinity);
  };
  uint32_t id = r.begin + ptx::lane_index();
  float x[kLoads];
  LC_UNROLL
  for (uint32_t i = 0; i < kLoads; ++i) x[i] = load(id + 32 * i);
  LC_NO_UNROLL
  for (uint32_t first = r.begin; first < r.end; first += 32, id += 32) {
    take(id, x[0]);
    LC_UNROLL
    for (uint32_t i = 1; i < kLoads; ++i) x[i - 1] = x[i];
    x[kLoads - 1] = load(id + 32 * kLoads);
  }
}

// What stays: weights above `least` and the first `ties`, in the order of ids, of those that equal it. Without a cut
// `scale` is 0, and weights stay as they are; else they are divided by it.
struct Cut {
  double least = 0, scale = 0;
  uint32_t ties = 0, ties_before = 0;  // ties_before: of the warps before this one
};

// take(id, weight) for all ids of the warp, by all lanes together: 0 for what does not stay.
template <class Take>
LC_DEVICE void visit_kept(const RowView& r, const Cut& cut, Take take) {
  uint32_t seen = cut.ties_before;
  visit_logits(r, [&](uint32_t id, float x) {
    double weight = weigh(r, x);
    if (cut.scale > 0) {
      const bool is_tie = weight == cut.least;
      const uint32_t ties = ptx::ballot(is_tie), lower = ties & ((1u << ptx::lane_index()) - 1);
      const bool stays = is_tie ? seen + ptx::popcount(lower) < cut.ties : weight > cut.least;
      weight = stays ? weight / cut.scale : 0.0;
      seen += ptx::popcount(ties);
    }
    take(id, weight);
  });
}

// The largest key of the row down to which there are `target` tokens or, by mass, there is as much weight; from `low`,
// down to which there is enough, to the key of the top. It ends where one key is left.
LC_DEVICE uint32_t find_edge(Exchange& e, const RowView& r, bool by_mass, double target, uint32_t low, uint32_t high) {
  double above = 0;  // behind high
  while (low < high) {
    const uint32_t step = (high - low) / 4 + 1;
    double own[3] = {};
    uint32_t most = 0, least = kNoToken;  // of the keys that occur
    visit_logits(r, [&](uint32_t, float x) {
      const uint32_t key = key_of(x);
      if (key < low || key > high) return;
      most = key > most ? key : most;
      least = key < least ? key : least;
      if (key < low + step) return;
      const double value = by_mass ? weigh(r, x) : 1.0;
      LC_UNROLL
      for (uint32_t i = 0; i < 3; ++i)
        if (key >= low + (i + 1) * step) own[i] += value;
    });
    ptx::Vec8 values[4];
    LC_UNROLL
    for (uint32_t i = 0; i < 3; ++i) values[i] = double_bits(sum_lanes(own[i]));
    values[3] = {ptx::redux_max(most), ptx::redux_max(~least)};
    const uint32_t shown = show(e, values);
    uint32_t enough = 0;  // of the three keys, from the lowest on
    double more = 0;      // above the first that is not
    LC_UNROLL
    for (uint32_t i = 0; i < 3; ++i) {
      const double sum = sum_shown(e, shown, i);
      if (enough != i) continue;
      if (above + sum >= target)
        ++enough;
      else
        more = sum;
    }
    const uint32_t next = low + (enough + 1) * step;
    low += enough * step;
    if (enough < 3 && next <= high) {
      above += more;
      high = next - 1;
    }
    const ptx::Vec8 bounds = most_shown(e, shown, 3);
    low = ~bounds.y > low ? ~bounds.y : low;
    high = bounds.x < high ? bounds.x : high;
  }
  return high;
}

// What lies above the weight at the edge, and how often it occurs.
struct Level {
  double weight, count_above, mass_above;
  double ties, ties_before;  // in the row, in the warps before this one
};

LC_DEVICE Level level_at(Exchange& e, const RowView& r, uint32_t key) {
  const double weight = weigh(r, value_of(key > kMinusInfinityKey ? key : kMinusInfinityKey));
  double count = 0, mass = 0, ties = 0;
  visit_logits(r, [&](uint32_t, float x) {
    const double other = weigh(r, x);
    count += other > weight ? 1.0 : 0.0;
    mass += other > weight ? other : 0.0;
    ties += other == weight ? 1.0 : 0.0;
  });
  const uint32_t shown =
      show(e, {double_bits(sum_lanes(count)), double_bits(sum_lanes(mass)), double_bits(sum_lanes(ties))});
  return {weight, sum_shown(e, shown, 0), sum_shown(e, shown, 1), sum_shown(e, shown, 2),
          sum_shown(e, shown, 2, e.warp)};
}

// How many of the ties of a level stay where `wanted` do, rounded up. The likeliest token always stays.
LC_DEVICE uint32_t whole_ties(const Level& level, double wanted) {
  const double bounded = wanted < level.ties ? (wanted > 1 ? wanted : 1.0) : level.ties;
  const uint32_t count = static_cast<uint32_t>(bounded);
  return count < bounded ? count + 1 : count;
}

// By count, by mass, or one after the other. whole: the sum of all weights.
LC_DEVICE Cut find_cut(Exchange& e, const RowView& r, const Cuts& cuts, double whole) {
  Cut cut{0, whole, 0, 0};
  const uint32_t high = key_of(static_cast<float>(r.top));
  uint32_t low = 0;
  LC_NO_UNROLL
  for (int kind = cuts.by_count(r.width) ? 0 : 1; kind < (cuts.by_mass() ? 2 : 1); ++kind) {
    const bool by_mass = kind == 1;
    const double target = by_mass ? (cuts.top_p > 0 ? cuts.top_p : 0.0) * whole : cuts.top_k;
    low = find_edge(e, r, by_mass, target, low, high);
    const Level level = level_at(e, r, low);
    double wanted = level.ties;
    if (!by_mass) wanted = target - level.count_above;
    if (by_mass && level.weight > 0) wanted = (target - level.mass_above) / level.weight;
    cut.ties = whole_ties(level, wanted);  // by mass after count: no more at the same weight
    cut.least = level.weight;
    cut.ties_before = static_cast<uint32_t>(level.ties_before);
    whole = level.mass_above + cut.ties * level.weight;
  }
  return cut;
}

// The sum of what weights(id, weight) makes of the weights that stay, where those of each warp are shown, and the
// weight of `watched`.
struct Sums {
  double total, watched;
  uint32_t shown;
};

template <class Weights>
LC_DEVICE Sums sum_kept(Exchange& e, const RowView& r, const Cut& cut, int64_t watched, Weights weights) {
  double sum = 0, found = 0;
  visit_kept(r, cut, [&](uint32_t id, double weight) {
    const double value = weights(id, weight);
    sum += value;
    if (id == watched) found = value;
  });
  const uint32_t shown = show(e, {double_bits(sum_lanes(sum)), double_bits(sum_lanes(found))});
  return {sum_shown(e, shown, 0), sum_shown(e, shown, 1), shown};
}

struct Distribution {
  RowView row;
  Cut cut;
  Sums sums;
};

LC_DEVICE Distribution distribution_of(Exchange& e, const RowView& r, const Cuts& cuts, int64_t watched) {
  Distribution d{r, {}, {}};
  const bool is_cut = cuts.by_count(r.width) || cuts.by_mass();
  LC_NO_UNROLL
  for (int pass = 0; pass <= is_cut; ++pass) {
    if (pass == 1) d.cut = find_cut(e, r, cuts, d.sums.total);
    d.sums = sum_kept(e, r, d.cut, watched, [](uint32_t, double weight) { return weight; });
  }
  return d;
}

// The first id at which the running sum of weights(id, weight) exceeds number * total, never one of weight 0; kNoToken
// in all warps but one.
template <class Weights>
LC_DEVICE uint32_t draw(const Exchange& e, const Distribution& d, const Sums& sums, double number, Weights weights) {
  const double wanted = number * sums.total;
  const Owner owner = find_owner(e, sums.shown, wanted);
  if (owner.warp != e.warp) return kNoToken;
  double run = owner.before;
  uint32_t token = kNoToken, last = 0;
  visit_kept(d.row, d.cut, [&](uint32_t id, double weight) {
    if (token != kNoToken) return;
    const double value = weights(id, weight), sum = run + scan_lanes(value);
    token = ptx::redux_min(value > 0 && sum > wanted ? id : kNoToken);
    const uint32_t end = ptx::redux_max(value > 0 ? id + 1 : 0);
    last = end > 0 ? end - 1 : last;
    run = shuffle(sum, 31);
  });
  return token != kNoToken ? token : last;  // rounding may have gone past the last
}

}  // namespace longcat_ops::sampling
