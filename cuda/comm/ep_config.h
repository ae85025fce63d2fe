// Sizes of expert parallelism and how its kernels are launched: pure functions of shapes that all ranks know. Plain
// C++, for kernels, launchers and tests.
#pragma once

#include <cstdint>

#include "comm/partition.h"
#include "common/constants.h"
#include "common/numeric.h"

namespace longcat_ops::comm {

constexpr int kMaxBuffers = 4;      // calls in flight
constexpr int kExpertTraffics = 2;  // dispatch, combine
constexpr int kExpertColumns = 16;  // columns are a multiple: 16 codes of a row are one store

struct ExpertShape {
  int ranks, experts, top_k;  // experts: of all ranks, a multiple of them
  bool fp8;                   // e4m3 rows with a scale per 128 columns; else bf16
  int64_t max_tokens;         // of a rank
  int64_t hidden;
};

constexpr int64_t at_most(int64_t value, int64_t limit) { return value < limit ? value : limit; }
constexpr int64_t local_experts(const ExpertShape& s) { return s.experts / s.ranks; }

// Rows that a rank may receive, and rows that may come back to it.
constexpr int64_t most_received(const ExpertShape& s) {
  return s.ranks * s.max_tokens * at_most(s.top_k, local_experts(s));
}
constexpr int64_t most_returned(const ExpertShape& s) { return s.max_tokens * at_most(s.top_k, s.experts); }

constexpr int64_t scales_of_row(const ExpertShape& s) { return s.fp8 ? ceil_div(s.hidden, kQuantBlock) : 0; }
constexpr int64_t sent_row_bytes(const ExpertShape& s) { return s.hidden * (s.fp8 ? 1 : 2) + 4 * scales_of_row(s); }
constexpr int64_t returned_row_bytes(const ExpertShape& s) { return 2 * s.hidden; }

// Parts of the symmetric memory: two for all calls, three for each buffer.
constexpr int64_t kFlagLineBytes = 128;  // of one traffic and buffer: a word for each source
constexpr int64_t ep_lines_bytes(const ExpertShape& s) {
  return kLlParities * s.ranks * (s.experts + 1) * kLlLineBytes;
}
constexpr int64_t kEpFlagsBytes = kExpertTraffics * kMaxBuffers * kFlagLineBytes;
constexpr int64_t ep_rows_bytes(const ExpertShape& s) { return most_received(s) * s.hidden * (s.fp8 ? 1 : 2); }
constexpr int64_t ep_scales_bytes(const ExpertShape& s) { return most_received(s) * scales_of_row(s) * 4; }
constexpr int64_t ep_returned_bytes(const ExpertShape& s) { return most_returned(s) * returned_row_bytes(s); }

// The table of a rank, which it alone reads and writes: a head, then a part for each buffer. In words of 4 bytes.
constexpr uint32_t kHeadEpoch = 0;      // the last call of any buffer
constexpr uint32_t kHeadCounters = 16;  // int64 [4]
constexpr uint32_t kHeadWords = 32;
constexpr uint32_t kCallEpoch = 0;    // of a buffer: its last call
constexpr uint32_t kCallTickets = 1;  // [traffic] blocks that are done
constexpr uint32_t kCallRemote = 3;   // rows received from other ranks
constexpr uint32_t kCallArrays = 8;   // from here on arrays, as ExpertTable says
constexpr int64_t call_words(int64_t experts) { return align_up(kCallArrays + 3 * experts + 1, kHeadWords); }
constexpr int64_t ep_table_bytes(int64_t experts, int buffers) {
  return 4 * (kHeadWords + buffers * call_words(experts));
}

enum ExpertCounter : uint32_t { kRowsSent, kRowsToOthers, kChoicesNotSent, kBytesToOthers };

// The grid of a combine, whose rows the host does not know: enough to fill a device, and no more.
constexpr int kCombineThreads = 128, kCombinePacks = 4;  // packs of 16 bytes that a lane has in flight
constexpr int64_t kCombineBlocks = 4 * kTypicalSms;
constexpr int64_t parts_of_row(int64_t packs) { return ceil_div(packs, kWarpLanes * kCombinePacks); }  // a warp each
constexpr int64_t combine_blocks(const ExpertShape& s) {
  const int64_t parts = most_received(s) * parts_of_row(returned_row_bytes(s) / kPackBytes);
  const int64_t blocks = at_most(ceil_div(parts, kCombineThreads / kWarpLanes), kCombineBlocks);
  return blocks > 0 ? blocks : 1;  // one block flags, even if no row can come
}

// The counting block: a thread per line, so that none waits for two lines in turn; the most experts have one line more
// than a block has threads.
constexpr int counts_threads(int64_t experts) {
  return static_cast<int>(at_most(align_up(experts + 1, kWarpLanes), kMaxExperts));
}

}  // namespace longcat_ops::comm
