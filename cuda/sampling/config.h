// How tokens are chosen: pure functions of the shapes, for the launchers and for `explain`.
#pragma once

#include <cstdint>

#include "common/constants.h"

namespace longcat_ops {

// A cluster takes a sequence; its blocks share each row of logits.
struct SamplingConfig {
  int64_t blocks;
  int cluster;  // blocks of a cluster
  int threads;  // of a block
};

constexpr int kMaxSamplingCluster = 8;
// The emulator's blocks are smaller, so that short rows take every path of long ones.
#ifdef LC_EMULATE
constexpr int kGreedyMaxThreads = 96;
constexpr int64_t kGreedyResident = 16;    // blocks that are on the device at once
constexpr int64_t kGreedyBlockWidth = 64;  // fewest logits for which a block more pays
constexpr int kSampledMaxThreads = 64;
constexpr int64_t kSampledBlockWidth = 512;
#else
constexpr int kGreedyMaxThreads = 512;
constexpr int64_t kGreedyResident = 2 * kH100Sms;
constexpr int64_t kGreedyBlockWidth = 8192;
constexpr int kSampledMaxThreads = 512;
constexpr int64_t kSampledBlockWidth = 8192;
#endif

// Shared memory: a place for each warp and one for the block, twice.
constexpr int kGreedySmemBytes = 2 * 8 * (32 + 1);

constexpr int kMaxSampledWarps = 128;                            // of a cluster
constexpr int kSampledSmemBytes = 3 * 4 * 8 * kMaxSampledWarps;  // four numbers of each, three times

// Of the classifier of filter_drafts: eight units of each lane of a warp.
constexpr int kMaxHiddenUnits = 256;

SamplingConfig choose_verify_greedy_config(int64_t sequences, int64_t width);
// For rows that are drawn from.
SamplingConfig choose_sampled_config(int64_t sequences, int64_t width);

}  // namespace longcat_ops
