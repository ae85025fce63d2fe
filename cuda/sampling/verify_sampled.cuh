// verify_sampled: a draw from the distribution of each row of a sequence, as long as the row before yields its draft;
// with draft_probs the rejection rule of Leviathan et al., arXiv 2211.17192, section 2.3.
//
// Floor: 4 V bytes a row that is judged, and 4 V of draft_probs where a draft is replaced: 0.5 MB each for V = 131072;
// 192 rows are 101 MB, 34 us at 3.0 TB/s. An exp and its division are about 50 float64 instructions a logit and pass:
// one pass without a cut, 0.1 ms for 192 rows at 64 lanes an SM and 1.7 GHz, so these are the bound.
//
// A cluster takes a sequence and judges row after row, as in verify_greedy.
#pragma once

#include "sampling/distribution.cuh"
#include "sampling/verified.cuh"

namespace longcat_ops::sampling {

struct VerifySampledParams {
  Verified v;
  Draws draws;
  const float* draft_probs;  // [sequences, rows - 1, width]; null: drafts are an argmax
  int64_t stride_probs, stride_probs_row;
  uint32_t cluster, threads;  // blocks of a cluster, threads of a block
};

struct Choice {
  int64_t token;
  bool accepted;  // the token is the draft
};

// Row j of sequence b, whose logits are x; the same in all threads of the cluster. draft: that behind the row, if there
// is one.
LC_DEVICE Choice choose(const VerifySampledParams& p, Exchange& e, int64_t b, int64_t j, const float* x, bool is_judged,
                        int64_t draft) {
  const auto number = [&](Purpose purpose) { return number_of(p.draws, b, j, purpose); };
  const auto compared = [&](int64_t token) { return Choice{token, is_judged && token == draft}; };
  const Best best = best_shown(e, best_of_thread(e.team, x, p.v.width));
  if (!is_finite(best)) return {-1, false};
  const float temperature = ptx::load_global(p.draws.temperature + b);
  if (!is_sampled(temperature)) return compared(best.id);

  const Distribution d = distribution_of(e, view_of(e, x, p.v.width, best, temperature), cuts_of(p.draws, b), draft);
  const float* q = nullptr;  // given: weights are (p - q)+
  const auto weights = [&](uint32_t id, double weight) {
    if (q == nullptr) return weight;
    const double rest = id < d.row.end ? weight / d.sums.total - ptx::load_global(q + id) : 0.0;
    return rest > 0 ? rest : 0.0;
  };
  Sums sums = d.sums;
  const bool by_ratio = is_judged && p.draft_probs != nullptr;
  if (by_ratio) {
    q = p.draft_probs + b * p.stride_probs + j * p.stride_probs_row;
    if (draft >= 0 && draft < p.v.width &&
        number(Purpose::kAccept) * ptx::load_global(q + draft) < d.sums.watched / d.sums.total)
      return {draft, true};
    sums = sum_kept(e, d.row, d.cut, -1, weights);
    if (!(sums.total > 0)) {  // nothing is left: the weights stay
      sums = d.sums;
      q = nullptr;
    }
  }
  const double drawn = number(by_ratio ? Purpose::kResidual : Purpose::kTarget);
  const uint32_t token = draw(e, d, sums, drawn, weights);
  const int64_t agreed = best_shown(e, {token != kNoToken ? 1u : 0u, token}).id;  // one warp has it
  return by_ratio ? Choice{agreed, false} : compared(agreed);
}

LC_KERNEL LC_LAUNCH_BOUNDS(kSampledMaxThreads, 1) verify_sampled_kernel(LC_GRID_CONSTANT VerifySampledParams p) {
  const Verified& v = p.v;
  const Team team = team_of(p.cluster, p.threads);
  const int64_t b = ptx::block_index() / p.cluster;
  Exchange e = start_exchange(team, ptx::dynamic_smem_base());
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  const int64_t last = last_row(v, b);
  int64_t given = 0;
  for (bool accepted = true; accepted && given <= last; ++given) {
    const int64_t row = row_of(v, b, given);
    const bool is_judged = given < last;
    Choice choice{-1, false};
    if (row >= 0)
      choice = choose(p, e, b, given, v.logits + row * v.width, is_judged, is_judged ? draft_of(v, b, given) : -1);
    accepted = choice.accepted;
    if (team.rank == 0 && team.thread == 0) ptx::store_global(v.tokens + b * v.stride_tokens + given, choice.token);
  }
  if (team.rank == 0) finish_sequence(v, team, b, given);
}

}  // namespace longcat_ops::sampling
