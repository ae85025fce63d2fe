// sample_tokens: a draft of each sequence and the float32 probabilities that it was drawn from.
//
// Floor: 4 V bytes of logits read and 4 V of probabilities written a sequence; for V = 131072 and 192 sequences 201 MB,
// 67 us at 3.0 TB/s. An exp and its divisions are about 60 float64 instructions a logit and pass: two passes without a
// cut, 0.2 ms for 192 rows at 64 lanes an SM and 1.7 GHz, so these are the bound.
//
// A cluster takes a row.
#pragma once

#include "sampling/distribution.cuh"

namespace longcat_ops::sampling {

struct SampleParams {
  const float* logits;  // [sequences, width]
  Draws draws;
  int64_t* tokens;  // [sequences]
  float* probs;     // [sequences, width]
  int64_t stride_logits, stride_tokens, stride_probs;
  uint32_t width, cluster, threads;  // blocks of a cluster, threads of a block
};

LC_KERNEL LC_LAUNCH_BOUNDS(kSampledMaxThreads, 1) sample_tokens_kernel(LC_GRID_CONSTANT SampleParams p) {
  const Team team = team_of(p.cluster, p.threads);
  const int64_t b = ptx::block_index() / p.cluster;
  Exchange e = start_exchange(team, ptx::dynamic_smem_base());
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  const float* x = p.logits + b * p.stride_logits;
  float* probs = p.probs + b * p.stride_probs;
  const Best best = best_shown(e, best_of_thread(team, x, p.width));
  const float temperature = ptx::load_global(p.draws.temperature + b);
  const RowView r = view_of(e, x, p.width, best, temperature);

  if (!is_finite(best) || !is_sampled(temperature)) {
    const int64_t token = is_finite(best) ? int64_t{best.id} : int64_t{-1};
    for (uint32_t id = r.begin + ptx::lane_index(); id < r.end; id += 32)
      ptx::store_global(probs + id, id == token ? 1.0f : 0.0f);
    if (team.rank == 0 && team.thread == 0) ptx::store_global(p.tokens + b * p.stride_tokens, token);
    return;
  }
  const Distribution d = distribution_of(e, r, cuts_of(p.draws, b), -1);
  const Sums sums = sum_kept(e, r, d.cut, -1, [&](uint32_t id, double weight) {
    const float probability = static_cast<float>(weight / d.sums.total);
    if (id < r.end) ptx::store_global(probs + id, probability);
    return static_cast<double>(probability);
  });
  // A thread reads what it has stored.
  const uint32_t token = draw(e, d, sums, number_of(p.draws, b, 0, Purpose::kDraft), [&](uint32_t id, double) {
    return id < r.end ? static_cast<double>(ptx::load_global(probs + id)) : 0.0;
  });
  if (token != kNoToken && ptx::lane_index() == 0)
    ptx::store_global(p.tokens + b * p.stride_tokens, static_cast<int64_t>(token));
}

}  // namespace longcat_ops::sampling
