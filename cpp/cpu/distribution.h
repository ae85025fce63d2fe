// The distribution of one row of logits, in float64.
#pragma once

#include <cstdint>
#include <vector>

namespace longcat_ops::cpu {

// The largest of x; NaN if one is NaN. count is positive.
float top_of(const float* x, int64_t count);
// The first place of a value that x holds.
int64_t first_of(const float* x, int64_t count, float value);

struct Cuts {
  double temperature;  // positive and finite
  int64_t top_k;       // 1 .. count - 1 keeps so many
  double top_p;        // below 1 keeps the smallest prefix that holds it
};

// Weights of each id and their sum. Its memory grows to the widest row, and serves the next.
class Distribution {
 public:
  // softmax(x / temperature), then the top_k largest, then of their order the tokens before which there is less mass
  // than top_p, at least one. Ties go to the lower id. top: the largest of x, finite.
  void assign(const float* x, int64_t count, float top, const Cuts& cuts);
  double probability(int64_t id) const { return weights_[id] / total_; }
  // Of a row that was not cut: the probability of its top.
  double largest() const { return 1 / total_; }
  // Of a row x that was not cut: the sum of -p ln p over the `count` largest p, p being of the whole row; in the order
  // of ids, or of weights where there are more. The weights become probabilities.
  double entropy(const float* x, float top, int64_t count);
  // Rounds probabilities to float32; these are the weights from then on.
  void round_to(float* probs);
  // The weights become (p - q)+. Where that vanishes they stay.
  void subtract(const float* q);
  // The first id at which the running sum exceeds uniform * total; never one of weight 0.
  int64_t draw(double uniform) const;

 private:
  struct Ranked {
    double weight;
    int32_t id;
  };
  struct Bin {  // of probabilities of about one size
    int64_t tokens;
    double mass;
  };

  void add_up();  // in the order of ids
  void cut(const Cuts& cuts);
  // Puts the largest weights, which are probabilities, in order: `count` of them, or more than `mass` together.
  void rank(int64_t count, double mass);

  std::vector<double> weights_;
  std::vector<double> before_;  // the running sum before each kChunk weights
  std::vector<Ranked> ranked_;  // the largest, in order
  std::vector<Bin> bins_;
  int64_t count_ = 0;
  double total_ = 0;
};

Distribution& scratch_of_thread();

}  // namespace longcat_ops::cpu
