#include "mla/config.h"

#include <algorithm>

#include "common/constants.h"
#include "common/numeric.h"

namespace longcat_ops {

using namespace mla;

const char* refusal_of(const MlaDecodeProblem& problem) {
  if (problem.latent % 16 != 0 || problem.width % 16 != 0)
    return "latent and W are multiples of 16: TMA reads rows in pieces of 16 bytes, and 16 rows are one product";
  if (problem.latent > kMostLatent || problem.width > kMostBoxes * kBoxElements)
    return "latent is at most 512 and W at most 576: more sums and rows than a block of Hopper holds";
  return nullptr;
}

MlaDecodeConfig choose_mla_decode_config(const MlaDecodeProblem& problem) {
  MlaDecodeConfig config;
  config.half = problem.latent <= 128 ? 64 : problem.latent <= 256 ? 128 : 256;
  config.head_tiles = ceil_div(problem.heads, kTileHeads);
  config.rows = problem.tokens * config.head_tiles;
  const int64_t most_splits = ceil_div(problem.table_width * kPageRows, problem.split_rows);
  const int64_t units = config.rows * std::max<int64_t>(most_splits, 1);
  config.blocks = std::min(problem.sms, units);
  if (most_splits > 1 && config.blocks > 0) {
    // Few rows: more blocks of fewer columns each, or one SM would read all of a long row's partial sums.
    const int64_t fragments = config.half / 2 / kFragment;
    config.merge_fragments = config.rows * (fragments / 4) >= problem.sms ? 4 : 1;
    config.merge_parts = fragments / config.merge_fragments;
    config.raw_splits = std::min<int64_t>({kMostRawSplits, most_splits - 1, ceil_div(units, config.blocks)});
  }
  uint32_t stages = kMostStages;
  const auto width = static_cast<uint32_t>(problem.width);
  while (make_decode_smem(width, config.half, stages).bytes > kMaxBlockSmem) --stages;
  config.smem = make_decode_smem(width, config.half, stages);
  return config;
}

}  // namespace longcat_ops
