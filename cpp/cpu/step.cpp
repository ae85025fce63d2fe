#include "cpu/step.h"

#include <algorithm>

#include "cpu/lanes.h"

namespace longcat_ops::cpu {

void pack_rows(const PackRowsParams& p) {
  int64_t row = 0;
  for (int64_t b = 0; b < p.sequences; ++b) {
    const int64_t count = std::min<int64_t>(p.num_drafts[b], p.width - 1) + 1;
    p.first_row[b] = count > 0 ? static_cast<int32_t>(row) : -1;
    const int64_t* tokens = row_of<const int64_t>(p.tokens, b);
    for (int64_t j = 0; j < count; ++j, ++row) {
      p.ids[row] = tokens[j];
      p.sequence[row] = static_cast<int32_t>(b);
      p.position[row] = static_cast<int32_t>(std::min<int64_t>(p.lengths[b] + j, INT32_MAX));
    }
  }
  std::fill_n(p.num_rows, p.copies, static_cast<int32_t>(row));
  const int64_t padding = p.sequences * p.width - row;
  std::fill_n(p.ids + row, padding, -1);
  std::fill_n(p.sequence + row, padding, -1);
  std::fill_n(p.position + row, padding, -1);
}

void advance_lengths(const AdvanceParams& p) {
  const auto ends_text = [&](int64_t token) {
    return token < 0 || std::find(p.stop_ids, p.stop_ids + p.num_stop_ids, token) != p.stop_ids + p.num_stop_ids;
  };
  for (int64_t b = 0; b < p.sequences; ++b) {
    p.kept[b] = 0;
    p.last_row[b] = -1;
    if (p.num_drafts[b] < 0) continue;
    const int64_t* tokens = row_of<const int64_t>(p.tokens, b);
    const int64_t limit = p.limits[b], room = limit - p.lengths[b] - 1;
    const int64_t most = std::min(std::clamp<int64_t>(p.num_tokens[b], 0, p.width), room);
    int64_t kept = 0;
    bool ended = false;
    while (kept < most && !ended) ended = ends_text(tokens[kept++]);
    const int64_t length = p.lengths[b] + kept;
    if (kept > 0) {
      p.kept[b] = static_cast<int32_t>(kept);
      p.lengths[b] = static_cast<int32_t>(length);
      p.newest[b * p.newest_stride] = tokens[kept - 1];
      if (p.first_row[b] >= 0) p.last_row[b] = p.first_row[b] + kept - 1;
    }
    const bool finished = kept == 0 || ended || length + 1 >= limit;
    p.num_drafts[b] = finished ? -1 : static_cast<int32_t>(std::min(p.width - 1, limit - length - 2));
  }
}

}  // namespace longcat_ops::cpu
