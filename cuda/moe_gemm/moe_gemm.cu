#include "moe_gemm/moe_gemm.cuh"

#include <string>

#include "base/numeric.h"
#include "config/moe_gemm_config.h"
#include "launch/launch.h"
#include "launch/tensor_map.h"
#include "longcat_ops.h"

namespace longcat_ops::moe_gemm {
namespace {

// A stack of one matrix stands for what all groups share.
struct Operands {
  lc_stack a, sa, b, sb, out;
  RowLayout layout = RowLayout::kDense;
  const char* index_name = "";
  const int32_t* index = nullptr;
  int64_t index_size = 0;
  int64_t max_rows = -1, mean_rows = -1;  // of one group, as the caller estimates them; -1: no estimate
  bool counts_ready = false;

  void set_index(RowLayout layout_, const char* name, const int32_t* data, int64_t size) {
    layout = layout_;
    index_name = name;
    index = data;
    index_size = size;
  }
};

lc_stack single(const lc_matrix* matrix) { return {*matrix, 1, 0}; }

template <class T>
Stack<T> stack_of(const lc_stack& stack) {
  const lc_matrix& m = stack.matrix;
  return {static_cast<T*>(m.data), stack.count > 1 ? stack.stride : 0, m.row_stride, m.column_stride};
}

ByteTensor bytes_of(const lc_stack& stack) {
  const lc_matrix& m = stack.matrix;
  return {m.data, stack.count, m.rows, m.columns, stack.stride, m.row_stride};
}

// bf16, and all rows on 16-byte boundaries, which bulk copies need.
bool bulk_output(const lc_stack& out) {
  const lc_matrix& m = out.matrix;
  const int64_t group_stride = out.count > 1 ? out.stride : 0, row_stride = m.rows > 1 ? m.row_stride : 0;
  return m.dtype == LC_BF16 && reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && (group_stride | row_stride) % 8 == 0;
}

OutputType output_type(int32_t dtype) {
  return dtype == LC_F32 ? OutputType::kFloat32 : dtype == LC_F16 ? OutputType::kFloat16 : OutputType::kBFloat16;
}

Memory memory_of(const Operands& o) {
  Memory memory;
  memory.reads("a", &o.a).reads("sa", &o.sa).updates("out", &o.out);
  if (o.counts_ready) {
    memory.settled("b", &o.b).settled("sb", &o.sb).settled(o.index_name, o.index, o.index_size);
  } else {
    memory.reads("b", &o.b).reads("sb", &o.sb).reads(o.index_name, o.index, o.index_size);
  }
  return memory;
}

int launch_moe_gemm(const char* op, const Operands& o, lc_stream_t stream) {
  const ByteTensor weight = bytes_of(o.b), tokens = bytes_of(o.a);
  MoeGemmProblem problem;
  problem.groups = o.b.count;
  problem.rows = o.a.count * o.a.matrix.rows;
  problem.group_rows = o.a.matrix.rows;
  problem.max_rows = o.max_rows;
  problem.mean_rows = o.mean_rows;
  problem.n = o.b.matrix.rows;
  problem.k = o.b.matrix.columns;
  problem.mapped = can_map(weight) && can_map(tokens);
  problem.sms = sm_count();
  problem.max_stages = kMaxStages;
  const MoeGemmConfig config = choose_moe_gemm_config(problem);
  if (config.grid == 0) return set_status(LC_OK, "");

  MoeGemmParams params{};
  if (problem.mapped) {
    constexpr uint32_t kBoxes[] = {8, 32, 128};
    if (const int status = encode_map(weight, config.tile_rows, &params.weight_map)) return status;
    for (int i = 0; i < 3; ++i)
      if (const int status = encode_map(tokens, kBoxes[i], &params.token_map[i])) return status;
  }
  params.weight = stack_of<const uint8_t>(o.b);
  params.tokens = stack_of<const uint8_t>(o.a);
  params.weight_scale = stack_of<const float>(o.sb);
  params.token_scale = stack_of<const float>(o.sa);
  params.output = stack_of<void>(o.out);
  params.output_type = output_type(o.out.matrix.dtype);
  params.bulk_output = bulk_output(o.out);
  params.counts_ready = o.counts_ready;
  params.rows = {o.layout, static_cast<uint32_t>(problem.groups), static_cast<uint32_t>(problem.group_rows), o.index};
  params.n = static_cast<uint32_t>(problem.n);
  params.k = static_cast<uint32_t>(problem.k);
  params.smem = make_smem_plan(config.tile_rows, config.max_tokens, config.stages);

  const auto kernel = !problem.mapped ? moe_gemm_kernel<kSmallTokens, false>
                      : config.small  ? moe_gemm_kernel<kSmallTokens, true>
                                      : moe_gemm_kernel<kMaxTokens, true>;
  const LaunchConfig launch_config{op, config.grid, kThreads, static_cast<int>(config.smem_bytes)};
  return launch(kernel, launch_config, params, stream, memory_of(o));
}

}  // namespace
}  // namespace longcat_ops::moe_gemm

extern "C" {

using namespace longcat_ops::moe_gemm;

int lc_fp8_gemm_nt(const lc_matrix* a, const lc_matrix* sa, const lc_matrix* b, const lc_matrix* sb,
                   const lc_matrix* out, lc_stream_t stream) {
  const Operands operands{single(a), single(sa), single(b), single(sb), single(out)};
  return launch_moe_gemm("fp8_gemm_nt", operands, stream);
}

int lc_m_grouped_fp8_gemm_nt_offset(const lc_matrix* a, const lc_matrix* sa, const lc_stack* b, const lc_stack* sb,
                                    const int32_t* offsets, int64_t max_m_hint, int32_t counts_ready,
                                    const lc_matrix* out, lc_stream_t stream) {
  Operands operands{single(a), single(sa), *b, *sb, single(out)};
  operands.set_index(RowLayout::kOffset, "offsets", offsets, b->count + 1);
  operands.max_rows = max_m_hint;
  operands.counts_ready = counts_ready != 0;
  return launch_moe_gemm("m_grouped_fp8_gemm_nt_offset", operands, stream);
}

int lc_m_grouped_fp8_gemm_nt_masked(const lc_stack* a, const lc_stack* sa, const lc_stack* b, const lc_stack* sb,
                                    const int32_t* masked_m, int64_t expected_m, const lc_stack* out,
                                    lc_stream_t stream) {
  Operands operands{*a, *sa, *b, *sb, *out};
  operands.set_index(RowLayout::kMasked, "masked_m", masked_m, b->count);
  operands.mean_rows = expected_m;
  return launch_moe_gemm("m_grouped_fp8_gemm_nt_masked", operands, stream);
}

int lc_m_grouped_fp8_gemm_nt_contiguous(const lc_matrix* a, const lc_matrix* sa, const lc_stack* b, const lc_stack* sb,
                                        const int32_t* m_indices, const lc_matrix* out, lc_stream_t stream) {
  Operands operands{single(a), single(sa), *b, *sb, single(out)};
  operands.set_index(RowLayout::kContiguous, "m_indices", m_indices, a->rows);
  return launch_moe_gemm("m_grouped_fp8_gemm_nt_contiguous", operands, stream);
}

}  // extern "C"
