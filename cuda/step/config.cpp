#include "step/config.h"

#include <algorithm>

#include "common/constants.h"
#include "common/numeric.h"

namespace longcat_ops {

// One block even without a sequence, for the number of rows. Shared memory: three sums, and where the rows of each
// sequence begin and those of the last one end.
StepConfig choose_pack_rows_config(int64_t sequences) {
  return {std::max<int64_t>(ceil_div(sequences, int64_t{kPackThreads}), 1), kPackThreads,
          3 * kPackScanBytes + 4 * (kPackThreads + 1)};
}

StepConfig choose_advance_lengths_config(int64_t sequences) {
  return {ceil_div(sequences, int64_t{kAdvanceThreads / kWarpLanes}), kAdvanceThreads, 0};
}

}  // namespace longcat_ops
