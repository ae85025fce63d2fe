// filter_drafts: drops drafts that a classifier of two layers scores below beta (C2T, arXiv:2502.13652), by the largest
// probability and the entropy of the row that they came from.
//
// Floor: 4 V bytes of logits a sequence that has a draft of this depth; for V = 131072 and 192 sequences 101 MB, 34 us
// at 3.0 TB/s. An exp is about 50 float64 instructions a logit and pass, and three passes weigh all logits: the sum,
// the level at the edge of `top`, the entropy. That is 0.3 ms for 192 rows at 64 lanes an SM and 1.7 GHz, so these are
// the bound. Between them the search for that edge compares keys alone, in at most 16 passes. V <= top: two passes
// weigh.
//
// A cluster takes a row; one warp of it has the classifier, a hidden unit a lane.
#pragma once

#include "sampling/distribution.cuh"

namespace longcat_ops::sampling {

struct FilterParams {
  const float* logits;             // [sequences, width]
  int32_t* num_drafts;             // [sequences]
  const float* hidden;             // [units, 4]: weights of joint, entropy and depth, and a bias
  const float* output;             // [units + 1]: weights, and a bias
  const float* joint_before;       // [sequences]; null: 1
  float *joint, *entropy, *score;  // [sequences]
  int64_t stride_logits;
  uint32_t width, units;
  int32_t depth, top;
  float beta;
  uint32_t cluster, threads;  // blocks of a cluster, threads of a block
};

// ln of x >= 1, within 2^-53 (5 + ln x). The steps of cpp/cpu/exp.h: a start that is linear in the bits of x, and three
// of Halley's steps for exp(y) = x.
LC_DEVICE double log_f64(double x) {
  int64_t word;
  memcpy(&word, &x, sizeof word);
  double y = static_cast<double>(word - (int64_t{1023} << 52)) * 0x1p-52 * 0x1.62e42fefa39efp-1;
  LC_NO_UNROLL
  for (int i = 0; i < 3; ++i) {
    const double ratio = x * exp_f64(-y);
    y += 2 * (ratio - 1) / (ratio + 1);
  }
  return y;
}

struct Features {
  double joint, entropy;
};

// By all lanes of a warp; each takes its units in order. NaN gives NaN.
LC_DEVICE double classify(const FilterParams& p, const Features& f) {
  double sum = 0;
  LC_NO_UNROLL
  for (uint32_t u = ptx::lane_index(); u < p.units; u += 32) {
    const auto weight = [&](uint32_t i) { return static_cast<double>(ptx::load_global(p.hidden + 4 * u + i)); };
    const double unit = weight(0) * f.joint + weight(1) * f.entropy + weight(2) * p.depth + weight(3);
    sum += ptx::load_global(p.output + u) * (unit < 0 ? 0.0 : unit);
  }
  sum = sum_lanes(sum) + ptx::load_global(p.output + p.units);
  const double other = exp_f64(sum < 0 ? sum : -sum);
  return (sum < 0 ? other : 1.0) / (1.0 + other);
}

LC_DEVICE void store(const FilterParams& p, int64_t b, const Features& f, float score) {
  ptx::store_global(p.joint + b, static_cast<float>(f.joint));
  ptx::store_global(p.entropy + b, static_cast<float>(f.entropy));
  ptx::store_global(p.score + b, score);
}

// Of the row of sequence b, by all threads of the cluster, which then all have them. NaN of one that is not finite.
LC_DEVICE Features measure(const FilterParams& p, Exchange& e, int64_t b) {
  const float* x = p.logits + b * p.stride_logits;
  const Best best = best_shown(e, best_of_thread(e.team, x, p.width));
  if (!is_finite(best)) {
    const double nan = device::bits_float(device::kNanBits);
    return {nan, nan};
  }
  const RowView r = view_of(e, x, p.width, best, 1);
  const double whole = sum_kept(e, r, {}, -1, [](uint32_t, double weight) { return weight; }).total;
  const Cut cut = find_cut(e, r, {p.top, 1}, whole);  // probabilities of the whole row; without a cut, all of them
  const double log_whole = log_f64(whole);
  const Sums terms = sum_kept(e, r, cut, -1, [&](uint32_t id, double probability) {
    return probability > 0 ? probability * (log_whole + (r.top - ptx::load_global(x + id))) : 0.0;
  });
  const double before = p.joint_before ? ptx::load_global(p.joint_before + b) : 1.0f;
  return {before / whole, terms.total};
}

LC_KERNEL LC_LAUNCH_BOUNDS(kSampledMaxThreads, 1) filter_drafts_kernel(LC_GRID_CONSTANT FilterParams p) {
  const Team team = team_of(p.cluster, p.threads);
  const int64_t b = ptx::block_index() / p.cluster;
  Exchange e = start_exchange(team, ptx::dynamic_smem_base());
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  const bool is_writer = team.rank == 0 && team.thread == 0;
  if (ptx::load_global(p.num_drafts + b) < p.depth) {  // in all blocks, long before it is written
    if (is_writer) store(p, b, {0, 0}, 0);
    return;
  }
  const Features found = measure(p, e, b);
  if (team.rank != 0 || ptx::warp_index() != 0) return;
  const float score = static_cast<float>(classify(p, found));
  if (!is_writer) return;
  store(p, b, found, score);
  if (!(score >= p.beta)) ptx::store_global(p.num_drafts + b, p.depth - 1);
}

}  // namespace longcat_ops::sampling
