// The functions of cuda/comm/partition.h and ep_config.h for a test, behind a C interface.
#include "comm/partition.h"

#include "comm/ep_config.h"

using namespace longcat_ops::comm;

extern "C" {

// Adds 1 to seen[p] for each pack p that a thread gets, walking as a kernel does.
void walk(int64_t packs, int blocks, int threads, int64_t begin, int64_t* seen) {
  for (int block = 0; block < blocks; ++block)
    for (int thread = 0; thread < threads; ++thread)
      for (int64_t pack = first_pack(block, blocks, thread / 32, thread % 32); pack < packs;
           pack += pack_stride(blocks, threads))
        ++seen[begin + pack];
}

int64_t first_of_warp(int block, int blocks, int warp) { return first_pack(block, blocks, warp, 0); }

void split(uint64_t address, int64_t elements, int64_t element_bytes, int64_t* out) {
  const Packs packs = split_packs(address, elements, element_bytes);
  out[0] = packs.head, out[1] = packs.count, out[2] = packs.tail;
}

void shard(int64_t count, int ranks, int rank, int64_t* out) {
  const Range range = shard_of(count, ranks, rank);
  out[0] = range.begin, out[1] = range.end;
}

int64_t slot_bytes(int64_t max_bytes) { return ll_slot_bytes(max_bytes); }
int64_t slot_offset(int parity, int from, int ranks, int64_t max_bytes) {
  return ll_slot_offset(parity, from, ranks, max_bytes);
}
int64_t scratch_bytes(int ranks, int64_t max_bytes) { return ll_scratch_bytes(ranks, max_bytes); }

void expert_sizes(int ranks, int experts, int top_k, int fp8, int64_t max_tokens, int64_t hidden, int buffers,
                  int64_t* out) {
  const ExpertShape s{ranks, experts, top_k, fp8 != 0, max_tokens, hidden};
  const int64_t sizes[] = {most_received(s),   most_returned(s),     sent_row_bytes(s),
                           ep_lines_bytes(s),  kEpFlagsBytes,        ep_rows_bytes(s),
                           ep_scales_bytes(s), ep_returned_bytes(s), ep_table_bytes(experts, buffers)};
  for (const int64_t size : sizes) *out++ = size;
}

int64_t blocks_of_combine(int ranks, int experts, int top_k, int64_t max_tokens, int64_t hidden) {
  return combine_blocks({ranks, experts, top_k, true, max_tokens, hidden});
}

}  // extern "C"
