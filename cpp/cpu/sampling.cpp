#include "cpu/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/distribution.h"
#include "cpu/exp.h"
#include "cpu/lanes.h"

namespace longcat_ops::cpu {
namespace {

bool is_greedy(const Draws& draws, int64_t b) {
  return !(draws.temperature[b] > 0 && std::isfinite(draws.temperature[b]));
}

Cuts cuts_of(const Draws& draws, int64_t b) { return {draws.temperature[b], draws.top_k[b], draws.top_p[b]}; }

// The number of row `row` of sequence b, modulo 2^32.
double uniform_of(const Draws& draws, int64_t b, int64_t row, Purpose purpose) {
  return uniform(draws.seeds[b], static_cast<uint32_t>(draws.lengths[b]) + 1u + static_cast<uint32_t>(row), purpose);
}

struct Choice {
  int64_t token;
  bool accepted;  // the token is the draft
};

// Row j of sequence b, whose logits are x; draft is null behind the last one.
Choice choose(const VerifyParams& p, int64_t b, int64_t j, const float* x, const int64_t* draft) {
  const float top = top_of(x, p.width);
  if (!std::isfinite(top)) return {-1, false};
  const auto compared = [&](int64_t token) { return Choice{token, draft && *draft == token}; };
  if (!p.draws || is_greedy(*p.draws, b)) return compared(first_of(x, p.width, top));
  const auto number = [&](Purpose purpose) { return uniform_of(*p.draws, b, j, purpose); };
  Distribution& target = scratch_of_thread();
  target.assign(x, p.width, top, cuts_of(*p.draws, b));
  if (!draft || !p.draft_probs) return compared(target.draw(number(Purpose::kTarget)));
  const float* q = p.draft_probs + b * p.probs_stride + j * p.probs_row_stride;
  if (*draft >= 0 && *draft < p.width && number(Purpose::kAccept) * q[*draft] < target.probability(*draft))
    return {*draft, true};
  target.subtract(q);
  return {target.draw(number(Purpose::kResidual)), false};
}

struct Score {
  double joint = 0, entropy = 0, score = 0;
};

// Of sequence b, whose logits are x.
Score score_of(const FilterParams& p, int64_t b, const float* x) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  const float top = top_of(x, p.width);
  if (!std::isfinite(top)) return {kNan, kNan, kNan};
  Distribution& drafts = scratch_of_thread();
  drafts.assign(x, p.width, top, {.temperature = 1, .top_k = 0, .top_p = 1});
  const double joint = drafts.largest() * (p.joint_before ? p.joint_before[b] : 1.0f);
  const double entropy = drafts.entropy(x, top, p.top);
  double sum = p.output[p.units];
  for (int64_t u = 0; u < p.units; ++u) {
    const float* weights = p.hidden + 4 * u;
    const double unit =
        weights[0] * joint + weights[1] * entropy + weights[2] * static_cast<double>(p.depth) + weights[3];
    sum += p.output[u] * (unit < 0 ? 0 : unit);  // a NaN stays
  }
  const double other = exp_f64(-std::abs(sum));
  return {joint, entropy, (sum < 0 ? other : 1) / (1 + other)};
}

}  // namespace

void verify(const VerifyParams& p, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const int64_t last = smaller(p.num_drafts[b], p.rows - 1);
    int64_t* tokens = p.tokens + b * p.token_stride;
    int64_t given = 0;
    for (bool accepted = true; accepted && given <= last; ++given) {
      const int64_t row = (p.first_row ? p.first_row[b] : b * p.rows) + given;
      Choice choice{-1, false};
      if (row >= 0 && row < p.sequences * p.rows)
        choice = choose(p, b, given, p.logits + row * p.width,
                        given < last ? p.drafts + b * p.draft_stride + given : nullptr);
      tokens[given] = choice.token;
      accepted = choice.accepted;
    }
    std::fill(tokens + given, tokens + p.rows, -1);
    p.num_tokens[b] = static_cast<int32_t>(given);
  }
}

void sample_tokens(const SampleParams& p, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const float* x = row_of<const float>(p.logits, b);
    float* probs = row_of<float>(p.probs, b);
    int64_t& token = p.tokens[b * p.token_stride];
    const float top = top_of(x, p.width);
    if (std::isfinite(top) && !is_greedy(p.draws, b)) {
      Distribution& drafts = scratch_of_thread();
      drafts.assign(x, p.width, top, cuts_of(p.draws, b));
      drafts.round_to(probs);
      token = drafts.draw(uniform_of(p.draws, b, 0, Purpose::kDraft));
      continue;
    }
    std::fill_n(probs, p.width, 0.0f);
    token = std::isfinite(top) ? first_of(x, p.width, top) : -1;
    if (token >= 0) probs[token] = 1;
  }
}

void filter_drafts(const FilterParams& p, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    const bool is_drafted = p.num_drafts[b] >= p.depth;
    const Score found = is_drafted ? score_of(p, b, row_of<const float>(p.logits, b)) : Score{};
    p.joint[b] = static_cast<float>(found.joint);
    p.entropy[b] = static_cast<float>(found.entropy);
    p.score[b] = static_cast<float>(found.score);
    if (is_drafted && !(p.score[b] >= p.beta)) p.num_drafts[b] = static_cast<int32_t>(p.depth - 1);
  }
}

}  // namespace longcat_ops::cpu
