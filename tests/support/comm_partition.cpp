// The functions of cuda/comm/partition.h for a test, behind a C interface.
#include "comm/partition.h"

using namespace longcat_ops::comm;

extern "C" {

// Adds 1 to seen[p] for each pack p that a lane gets, walking as a kernel does. Returns the steps of every warp.
int64_t walk(int64_t packs, int blocks, int threads, int64_t begin, int64_t* seen) {
  const int warps = threads / longcat_ops::kWarpLanes;
  const int64_t steps = num_steps(packs, blocks, warps);
  for (int block = 0; block < blocks; ++block)
    for (int thread = 0; thread < threads; ++thread)
      for (int64_t step = 0; step < steps; ++step) {
        const int64_t pack = pack_index(block, blocks, thread / 32, warps, thread % 32, step);
        if (pack < packs) ++seen[begin + pack];
      }
  return steps;
}

int64_t first_pack(int block, int blocks, int warp, int warps, int64_t step) {
  return pack_index(block, blocks, warp, warps, 0, step);
}

void split(uint64_t address, int64_t elements, int64_t element_bytes, int64_t* out) {
  const Packs packs = split_packs(address, elements, element_bytes);
  out[0] = packs.head, out[1] = packs.count, out[2] = packs.tail;
}

void shard(int64_t count, int ranks, int rank, int64_t* out) {
  const Range range = shard_of(count, ranks, rank);
  out[0] = range.begin, out[1] = range.end;
}

void rows(const int32_t* counts, int rank, int64_t* out) {
  const Range range = rows_of(counts, rank);
  out[0] = range.begin, out[1] = range.end;
}

int64_t slot_bytes(int64_t max_bytes) { return ll_slot_bytes(max_bytes); }
int64_t slot_offset(int parity, int from, int ranks, int64_t max_bytes) {
  return ll_slot_offset(parity, from, ranks, max_bytes);
}
int64_t scratch_bytes(int ranks, int64_t max_bytes) { return ll_scratch_bytes(ranks, max_bytes); }

}  // extern "C"
