// How mla_decode runs: a pure function of the sizes, for the launcher, `explain` and the size of its workspace.
#pragma once

#include <cstdint>

#include "common/latent_pages.h"
#include "device/barrier_pair.h"

namespace longcat_ops {
namespace mla {

constexpr uint32_t kTileHeads = 64;    // of a block: the M of wgmma
constexpr uint32_t kBoxElements = 64;  // of a row: 128 bytes, the period of the swizzle
constexpr uint32_t kBoxBytes = 8192;   // 64 heads, or 64 rows of a page, of 128 bytes
constexpr uint32_t kMostBoxes = 9;     // of a row: 576 elements
constexpr uint32_t kMostLatent = 512;  // whose sums are half of the register file
constexpr uint32_t kValueGroups = 2;   // warpgroups that sum values, each half of the columns
constexpr uint32_t kScoreWarps = 4, kConsumerWarps = 8;
constexpr int kDecodeThreads = 32 * (kConsumerWarps + 4);  // setmaxnreg takes whole warpgroups
// Registers of a thread: as compiled, then of those that load and those that multiply.
constexpr int kFewestRegisters = 168, kLoaderRegisters = 40, kConsumerRegisters = 232;
static_assert((kFewestRegisters - kLoaderRegisters) * 128 >= 2 * (kConsumerRegisters - kFewestRegisters) * 128);
constexpr int kMergeThreads = 32 * kConsumerWarps;
constexpr uint32_t kScanParts = 3;
constexpr uint32_t kFragment = 4;  // accumulators of a thread that lie together in the workspace

// Stages of the ring, and splits that a block keeps unmerged; few in the emulator, so that small tests meet the ends.
#ifdef LC_EMULATE
constexpr uint32_t kMostStages = 2, kMostRawSplits = 3;
#else
constexpr uint32_t kMostStages = 4, kMostRawSplits = 64;
#endif

// Parts of shared memory, in bytes; stages come first.
struct DecodeSmem {
  uint32_t query_boxes, boxes;  // of a head's query; of a stage, which also has columns that no row has
  uint32_t stages;
  uint32_t query, weights, row_values, pages, barriers, scratch, bytes;

  constexpr uint32_t stage_bytes() const { return boxes * kBoxBytes; }
};

// Arrays of row_values, f32 [kTileHeads] each.
enum class RowValue : uint32_t { kFactor, kKeep, kAdd, kLargest, kWeight, kCount };

constexpr DecodeSmem make_decode_smem(uint32_t width, uint32_t half, uint32_t stages) {
  DecodeSmem smem{};
  const uint32_t value_boxes = kValueGroups * half / kBoxElements;
  smem.query_boxes = (width + kBoxElements - 1) / kBoxElements;
  smem.boxes = smem.query_boxes > value_boxes ? smem.query_boxes : value_boxes;
  smem.stages = stages;
  smem.query = stages * smem.stage_bytes();
  smem.weights = smem.query + smem.query_boxes * kBoxBytes;
  smem.row_values = smem.weights + kBoxBytes;
  smem.pages = smem.row_values + static_cast<uint32_t>(RowValue::kCount) * kTileHeads * 4;
  smem.barriers = smem.pages + 16 * stages;
  smem.scratch = smem.barriers + (stages + 1) * device::kBarrierPairBytes;
  smem.bytes = smem.scratch + kScanParts * 128 + 32;
  return smem;
}

// Partial results of 64 heads: sums in the order of the accumulators, then the largest score and the weight of each.
constexpr int64_t slot_floats(uint32_t half) { return kTileHeads * (kValueGroups * int64_t{half} + 2); }

}  // namespace mla

struct MlaDecodeProblem {
  int64_t tokens = 0, heads = 0, width = 0, latent = 0;
  int64_t table_width = 0, split_rows = 0;  // pages of a sequence; rows of a split
  int64_t sms = 0;
};

struct MlaDecodeConfig {
  uint32_t half = 0;                 // columns of a warpgroup: 64, 128 or 256
  int64_t head_tiles = 0, rows = 0;  // tiles of 64 heads, of a token and in all
  int64_t blocks = 0;                // of the kernel that attends
  int64_t merge_parts = 0;           // blocks that merge a row; 0: no row can have two splits
  uint32_t merge_fragments = 0;      // of a thread
  int64_t raw_splits = 0;            // that a block can keep unmerged
  mla::DecodeSmem smem{};

  int64_t slots() const { return merge_parts > 0 ? blocks * (1 + raw_splits) : 0; }
  int64_t workspace_bytes() const {
    return merge_parts > 0 ? 16 * rows + 16 * ((blocks + 3) / 4) + 4 * slots() * mla::slot_floats(half) : 0;
  }
};

// Why no kernel takes these sizes; null: one does.
const char* refusal_of(const MlaDecodeProblem& problem);

MlaDecodeConfig choose_mla_decode_config(const MlaDecodeProblem& problem);

}  // namespace longcat_ops
