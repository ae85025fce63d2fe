// How the bookkeeping of a decode step is launched: pure functions of the shapes, for the launchers and for `explain`.
#pragma once

#include <cstdint>

namespace longcat_ops {

struct StepConfig {
  int64_t blocks;
  int threads;
  int smem;  // bytes
};

constexpr int kPackThreads = 256;     // as many sequences a block
constexpr int kAdvanceThreads = 128;  // a warp a sequence
constexpr int kPackScanBytes = 128;   // shared memory for a sum over the block

StepConfig choose_pack_rows_config(int64_t sequences);
StepConfig choose_advance_lengths_config(int64_t sequences);

}  // namespace longcat_ops
