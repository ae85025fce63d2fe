// Host side of the collectives' launchers.
#pragma once

#include <cstring>

#include "comm/rank_barrier.cuh"
#include "comm/switch.cuh"
#include "common/text.h"
#include "launch/launch.h"

namespace longcat_ops::comm {

// LC_OK, or an error for what no kernel could run with.
inline int check_comm(const char* op, const lc_comm& c) {
  if (c.ranks < 1 || c.ranks > static_cast<int>(kMaxRanks) || c.rank < 0 || c.rank >= c.ranks)
    return set_status(LC_ERR_INVALID, text(op, ": rank ", c.rank, " of ", c.ranks, ", expected at most ", kMaxRanks));
  if (c.channel < 0 || c.channel >= static_cast<int>(kMaxChannels))
    return set_status(LC_ERR_INVALID, text(op, ": channel ", c.channel, ", expected below ", kMaxChannels));
  if (c.blocks < 1 || c.blocks > static_cast<int>(kMaxBlocks))
    return set_status(LC_ERR_INVALID, text(op, ": ", c.blocks, " blocks, expected 1 to ", kMaxBlocks));
  if (c.threads < 32 || c.threads > static_cast<int>(kMaxThreads) || c.threads % 32 != 0)
    return set_status(LC_ERR_INVALID,
                      text(op, ": ", c.threads, " threads, expected a multiple of 32 up to ", kMaxThreads));
  return LC_OK;
}

inline int64_t element_bytes(int32_t dtype) { return dtype == LC_F32 ? 4 : 2; }

// visit(Element()) for the elements that are summed, or an error for any other dtype.
template <class Visit>
int visit_element(const char* op, int32_t dtype, Visit visit) {
  switch (dtype) {
    case LC_F32: return visit(F32());
    case LC_F16: return visit(F16());
    case LC_BF16: return visit(BF16());
    default: return set_status(LC_ERR_INVALID, text(op, ": dtype ", dtype, ", expected f32, f16 or bf16"));
  }
}

// LC_OK, or an error for a message that the lines of a channel do not hold.
inline int check_lines(const char* op, int64_t bytes, int64_t max_bytes) {
  if (bytes <= max_bytes && max_bytes % kPackBytes == 0) return LC_OK;
  return set_status(LC_ERR_INVALID, text(op, ": ", bytes, " bytes, expected at most ", max_bytes,
                                         ", which is a multiple of ", kPackBytes));
}

inline RankView view_of(const lc_comm& c) {
  RankView view{};
  for (int rank = 0; rank < c.ranks; ++rank) view.memory[rank] = static_cast<uint8_t*>(c.memory[rank]);
  view.multicast = static_cast<uint8_t*>(c.multicast);
  view.record = c.record;
  view.timeout_ns = c.timeout_ns;
  view.rank = static_cast<uint32_t>(c.rank);
  view.ranks = static_cast<uint32_t>(c.ranks);
  view.channel = static_cast<uint32_t>(c.channel);
  view.op = static_cast<uint32_t>(c.op);
  return view;
}

// No early start: the end of the kernel ahead is what makes its writes visible
// to other GPUs, so that a relaxed arrival is enough; griddepcontrol.wait shows them to this grid alone.
inline LaunchConfig comm_launch(const char* op, const lc_comm& c, int smem = kBarrierBytes) {
  LaunchConfig config{op, c.blocks, c.threads, smem, false};
  config.load_only = c.load_only != 0;
  return config;
}

}  // namespace longcat_ops::comm
