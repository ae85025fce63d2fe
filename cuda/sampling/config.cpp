#include "sampling/config.h"

#include <algorithm>

#include "common/numeric.h"

namespace longcat_ops {

// Few sequences get clusters, as long as all of their blocks are on the device at once. No result depends on it.
SamplingConfig choose_verify_greedy_config(int64_t sequences, int64_t width) {
  constexpr int64_t kVector = 4;  // logits of a load
  int cluster = 1;
  while (cluster < kMaxSamplingCluster && 2 * cluster * sequences <= kGreedyResident &&
         2 * cluster * kGreedyBlockWidth <= width)
    cluster *= 2;
  const int64_t threads = align_up(ceil_div(ceil_div(width, kVector), int64_t{cluster}), kWarpLanes);
  return {cluster * sequences, cluster, static_cast<int>(std::min<int64_t>(threads, kGreedyMaxThreads))};
}

// The width alone decides: a row's sums have the same order in every batch.
SamplingConfig choose_sampled_config(int64_t sequences, int64_t width) {
  static_assert(kMaxSamplingCluster * kSampledMaxThreads / kWarpLanes <= kMaxSampledWarps);
  int cluster = 1;
  while (cluster < kMaxSamplingCluster && 2 * cluster * kSampledBlockWidth <= width) cluster *= 2;
  const int64_t threads = align_up(ceil_div(width, int64_t{cluster}), kWarpLanes);
  return {cluster * sequences, cluster, static_cast<int>(std::min<int64_t>(threads, kSampledMaxThreads))};
}

}  // namespace longcat_ops
