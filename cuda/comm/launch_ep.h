// Host side of the launchers of expert parallelism.
#pragma once

#include "comm/ep_view.cuh"
#include "comm/launch_comm.h"
#include "launch/instances.h"

namespace longcat_ops::comm {

inline ExpertShape shape_of(const lc_experts& e) {
  return {e.comm.ranks, e.num_experts, e.top_k, e.payload == LC_E4M3, e.max_tokens, e.hidden};
}

// LC_OK, or an error for what no kernel could run with.
inline int check_experts(const char* op, const lc_experts& e) {
  const auto refuse = [&](auto... parts) { return set_status(LC_ERR_INVALID, text(op, ": ", parts...)); };
  if (const int status = check_comm(op, e.comm)) return status;
  if (e.num_experts < 1 || e.num_experts > kMaxExperts || e.num_experts % e.comm.ranks != 0)
    return refuse(e.num_experts, " experts, expected a multiple of ", e.comm.ranks, " ranks up to ", kMaxExperts);
  if (e.top_k < 1 || e.top_k > kMaxTopK) return refuse("top_k ", e.top_k, ", expected 1 to ", kMaxTopK);
  if (e.buffer < 0 || e.buffer >= kMaxBuffers) return refuse("buffer ", e.buffer, ", expected below ", kMaxBuffers);
  if (e.payload != LC_E4M3 && e.payload != LC_BF16) return refuse("payload ", e.payload, ", expected e4m3 or bf16");
  if (e.hidden < kExpertColumns || e.hidden % kExpertColumns != 0)
    return refuse("hidden ", e.hidden, ", expected a multiple of ", kExpertColumns);
  constexpr int64_t kMost = INT32_MAX;  // rows, and parts of rows, are counted in 32 bits
  const ExpertShape shape = shape_of(e);
  const int64_t parts = parts_of_row(returned_row_bytes(shape) / kPackBytes);
  if (e.max_tokens < 0 || e.max_tokens > kMost / (kMaxRanks * kMaxTopK) || most_received(shape) > kMost / parts)
    return refuse("max_tokens ", e.max_tokens, ", expected 0 or more, and fewer for rows of ", e.hidden);
  if ((e.lines | e.flags | e.rows | e.scales | e.returned) % 16 != 0 || reinterpret_cast<uintptr_t>(e.tables) % 8 != 0)
    return refuse("a part of the memory does not begin on 16 bytes, or the table not on 8");
  return LC_OK;
}

// The same for rows of bf16 that a kernel reads.
inline int check_rows(const char* op, const lc_experts& e, const char* name, const lc_matrix& m, int64_t most) {
  if (m.dtype == LC_BF16 && m.columns == e.hidden && m.column_stride == 1 && m.rows <= most &&
      (m.rows == 0 || rows_aligned(&m, kPackBytes)))
    return LC_OK;
  return set_status(LC_ERR_INVALID,
                    text(op, ": ", name, " [", m.rows, ", ", m.columns, "] of dtype ", m.dtype, ", expected at most ",
                         most, " rows of ", e.hidden, " columns of bf16, each on 16 bytes"));
}

inline uint32_t* call_of(const lc_experts& e) {
  return static_cast<uint32_t*>(e.tables) + kHeadWords + e.buffer * call_words(e.num_experts);
}

inline ExpertView expert_view_of(const lc_experts& e) {
  const ExpertShape shape = shape_of(e);
  ExpertView view{};
  view.ranks = view_of(e.comm);
  view.head = static_cast<uint32_t*>(e.tables);
  view.call = call_of(e);
  view.lines = e.lines;
  view.flags = e.flags;
  view.rows = e.rows;
  view.scales = e.scales;
  view.returned = e.returned;
  view.experts = static_cast<uint32_t>(e.num_experts);
  view.local = static_cast<uint32_t>(local_experts(shape));
  view.buffer = static_cast<uint32_t>(e.buffer);
  view.received = static_cast<uint32_t>(most_received(shape));
  view.back = static_cast<uint32_t>(most_returned(shape));
  return view;
}

// The table's parts that a call may touch.
inline Memory expert_memory(const lc_experts& e) {
  return Memory()
      .updates("table", static_cast<uint32_t*>(e.tables), kHeadWords)
      .updates("table of a buffer", call_of(e), call_words(e.num_experts));
}

// NOTE: no early start, as for the collectives: the end of the kernel ahead is what makes its reads of a buffer and its
// writes known to other GPUs.
inline LaunchConfig expert_launch(const char* op, const lc_experts& e, int64_t blocks, int threads, int64_t smem) {
  LaunchConfig config{op, blocks, threads, static_cast<int>(smem), false};
  config.load_only = e.comm.load_only != 0;
  return config;
}

}  // namespace longcat_ops::comm
