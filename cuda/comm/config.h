// How a collective runs: a pure function of what all ranks know, for the launchers and for `explain` without a GPU.
#pragma once

#include <cstdint>

#include "comm/partition.h"

namespace longcat_ops::comm {

enum class Collective { kAllReduce, kReduceScatter, kAllGather, kBroadcast, kAllReduceRmsNorm };

enum class CommForm {
  kLowLatency,  // every rank sends its whole tensor as lines of data and flag, and sums what arrives: no barrier
  kTwoShot,     // each rank reduces its shard and stores it to all, interleaved, between two barriers
  kDirect,      // one phase between two barriers: reduce own rows, or store own rows to all
};

enum class SwitchPolicy {
  kMultimem,  // the switch adds and copies: one load sums all ranks, one store reaches all
  kPeers,     // a loop over the ranks in order: the same bits on every rank and in every run
};

// NOTE: nothing here may depend on the rows of the calling rank alone. Blocks of the same number wait for each other:
// if one rank had another form or another number of blocks, all would wait forever.
struct CommProblem {
  Collective collective = Collective::kAllReduce;
  int ranks = kMaxRanks;      // 1 .. kMaxRanks
  int64_t bytes = 0;          // whole tensor: of all-reduce, broadcast; read by reduce-scatter; written by all-gather
  int64_t largest_part = -1;  // bytes of the rank with the most rows; -1: even packs
  bool has_multicast = true;  // on all ranks
  bool deterministic = false;
  bool staged = false;    // the tensor is not symmetric: it goes through scratch
  int blocks = 0;         // 0: the default
  int threads = 0;        // of a block, a multiple of 32; 0: the default
  int64_t ll_bytes = -1;  // the largest message of the low-latency form; -1: kLlBytes, 0: never
};

struct CommConfig {
  CommForm form;
  SwitchPolicy policy;
  int blocks;
  int threads;
  int packs;              // of 16 bytes, that a thread loads before it stores the first
  int64_t shard_packs;    // of the busiest rank: what it reduces, or stores to all
  int64_t scratch_bytes;  // of symmetric memory, on each rank
};

constexpr int kThreads = 512, kPacks = 4;
constexpr int kFewestBlocks = 4, kMostBlocks = 16;
constexpr int kBlocksOfAllRanks = 32;
// Where no device is known: the smallest limit of the wire model (longcat_ops.perf.comm), that of 7 or 8 H800.
constexpr int64_t kLlBytes = 16 * 1024;

// 16, 11, 8, 7, 6, 5, 4 at 2 .. 8 ranks.
int default_blocks(int ranks);

CommConfig choose_comm_config(const CommProblem& problem);

}  // namespace longcat_ops::comm
