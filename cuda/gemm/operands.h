// Shared by the launchers: turns arguments of the C ABI into a kernel's parameters.
#pragma once

#include "gemm/config.h"
#include "gemm/params.cuh"
#include "launch/instances.h"
#include "launch/launch.h"
#include "launch/tensor_map.h"
#include "longcat_ops.h"

namespace longcat_ops::moe_gemm {

// A stack with one matrix is shared by all groups.
struct Operands {
  lc_stack a, sa, b, sb;  // scales with FP8 only
  RowLayout layout = RowLayout::kDense;
  const char* index_name = "";
  const int32_t* index = nullptr;
  int64_t index_size = 0;
  int64_t max_rows = -1, mean_rows = -1;  // caller's estimates for one group; -1: none
  bool counts_ready = false;
  int64_t split_k = 1;

  void set_index(RowLayout layout_, const char* name, const int32_t* data, int64_t size) {
    layout = layout_;
    index_name = name;
    index = data;
    index_size = size;
  }
};

static_assert(kBoxColumns == kBlockK);

inline lc_stack single(const lc_matrix* matrix) { return {*matrix, 1, 0}; }

template <class T>
Stack<T> stack_of(const lc_stack& stack) {
  const lc_matrix& m = stack.matrix;
  return {static_cast<T*>(m.data), stack.count > 1 ? stack.stride : 0, m.row_stride, m.column_stride};
}

// The bytes of an operand.
inline ByteTensor bytes_of(const lc_stack& stack) {
  const lc_matrix& m = stack.matrix;
  const int64_t size = element_bytes(m.dtype);
  return {m.data, stack.count, m.rows, size * m.columns, size * stack.stride, size * m.row_stride};
}

template <class T>
Stack<T> byte_stack(const lc_stack& stack) {
  const ByteTensor bytes = bytes_of(stack);
  return {static_cast<T*>(stack.matrix.data), bytes.groups > 1 ? bytes.group_stride : 0, bytes.row_stride, 1};
}

// Whether bulk copies can write the rows: all begin on 16-byte boundaries.
inline bool bulk_rows(const lc_stack& out) {
  const lc_matrix& m = out.matrix;
  const int64_t group_stride = out.count > 1 ? out.stride : 0, row_stride = m.rows > 1 ? m.row_stride : 0;
  return (static_cast<int64_t>(reinterpret_cast<uintptr_t>(m.data)) |
          (group_stride | row_stride) * element_bytes(m.dtype)) %
             16 ==
         0;
}

// All arguments but the outputs.
inline Memory memory_of(const Operands& o) {
  Memory memory;
  memory.reads("a", &o.a).reads("sa", &o.sa);  // scales without data are no argument
  if (o.counts_ready) {
    memory.settled("b", &o.b).settled("sb", &o.sb).settled(o.index_name, o.index, o.index_size);
  } else {
    memory.reads("b", &o.b).reads("sb", &o.sb).reads(o.index_name, o.index, o.index_size);
  }
  return memory;
}

inline MoeGemmProblem problem_of(Operand operand, const Operands& o) {
  MoeGemmProblem problem;
  problem.operand = operand;
  problem.groups = o.b.count;
  problem.rows = o.a.count * o.a.matrix.rows;
  problem.group_rows = o.a.matrix.rows;
  problem.max_rows = o.max_rows;
  problem.mean_rows = o.mean_rows;
  problem.n = o.b.matrix.rows;
  problem.k = o.b.matrix.columns;
  problem.mapped = can_map(bytes_of(o.b)) && can_map(bytes_of(o.a));
  problem.sms = sm_count();
  problem.split_k = o.split_k;
  return problem;
}

// Sets all parameters but the outputs. Returns LC_OK or an error.
inline int set_params(const Operands& o, const MoeGemmProblem& problem, const MoeGemmConfig& config,
                      MoeGemmParams& params) {
  if (problem.mapped) {
    constexpr uint32_t kBoxes[] = {8, 32, 128};
    if (const int status = encode_map(bytes_of(o.b), config.tile_rows, &params.weight_map)) return status;
    for (int i = 0; i < 3; ++i)
      if (const int status = encode_map(bytes_of(o.a), kBoxes[i], &params.token_map[i])) return status;
  }
  params.weight = byte_stack<const uint8_t>(o.b);
  params.tokens = byte_stack<const uint8_t>(o.a);
  params.weight_scale = stack_of<const float>(o.sb);
  params.token_scale = stack_of<const float>(o.sa);
  params.counts_ready = o.counts_ready;
  params.rows = {o.layout, static_cast<uint32_t>(problem.groups), static_cast<uint32_t>(problem.group_rows), o.index};
  params.n = static_cast<uint32_t>(problem.n);
  params.k = operand_bytes(problem.operand) * static_cast<uint32_t>(problem.k);
  params.split = static_cast<uint32_t>(o.split_k);
  params.smem = make_smem_layout(problem.operand, config.tile_rows, config.max_tokens, config.stages, params.split,
                                 problem.quantised);
  return LC_OK;
}

}  // namespace longcat_ops::moe_gemm
