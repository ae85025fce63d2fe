#include "gemm/moe_gemm.cuh"

#include "gemm/operands.h"

namespace longcat_ops::moe_gemm {
namespace {

OutputType output_type(int32_t dtype) {
  return dtype == LC_F32 ? OutputType::kFloat32 : dtype == LC_F16 ? OutputType::kFloat16 : OutputType::kBFloat16;
}

int launch_moe_gemm(const char* op, const Operands& o, const lc_stack& out, lc_stream_t stream) {
  MoeGemmProblem problem = problem_of(o);
  problem.clusters = o.split_k > 1
                         ? resident_clusters(problem.mapped ? moe_gemm_kernel<kSmallTokens, true, Cluster::kSplit>
                                                            : moe_gemm_kernel<kSmallTokens, false, Cluster::kSplit>,
                                             kThreads, static_cast<int>(o.split_k))
                         : resident_clusters(moe_gemm_kernel<kMaxTokens, true, Cluster::kPairs>, kThreads, 2);
  const MoeGemmConfig config = choose_moe_gemm_config(problem);
  if (config.grid == 0) return set_status(LC_OK, "");

  MoeGemmParams params{};
  if (const int status = set_params(o, problem, config, params)) return status;
  params.output = stack_of<void>(out);
  params.output_type = output_type(out.matrix.dtype);
  params.bulk_output = out.matrix.dtype == LC_BF16 && bulk_rows(out, 2);

  const auto kernel = !problem.mapped ? moe_gemm_kernel<kSmallTokens, false, Cluster::kSplit>
                      : o.split_k > 1 ? moe_gemm_kernel<kSmallTokens, true, Cluster::kSplit>
                      : config.small  ? moe_gemm_kernel<kSmallTokens, true, Cluster::kNone>
                      : config.paired ? moe_gemm_kernel<kMaxTokens, true, Cluster::kPairs>
                                      : moe_gemm_kernel<kMaxTokens, true, Cluster::kNone>;
  LaunchConfig launch_config{op, config.grid, kThreads, static_cast<int>(config.smem_bytes)};
  launch_config.cluster = config.paired ? 2 : static_cast<int>(o.split_k);
  if (!config.small) launch_config.registers = kFewestRegisters;
  return launch(kernel, launch_config, params, stream, memory_of(o).updates("out", &out));
}

}  // namespace
}  // namespace longcat_ops::moe_gemm

extern "C" {

using namespace longcat_ops::moe_gemm;

int lc_fp8_gemm_nt(const lc_fp8_gemm_nt_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_fp8_gemm_nt", args)) return status;
  Operands operands{single(&args->a), single(&args->sa), single(&args->b), single(&args->sb)};
  operands.split_k = args->split_k;
  return launch_moe_gemm("fp8_gemm_nt", operands, single(&args->out), stream);
}

int lc_m_grouped_fp8_gemm_nt_offset(const lc_m_grouped_fp8_gemm_nt_offset_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_m_grouped_fp8_gemm_nt_offset", args)) return status;
  Operands operands{single(&args->a), single(&args->sa), args->b, args->sb};
  operands.set_index(RowLayout::kOffset, "offsets", args->offsets, args->b.count + 1);
  operands.max_rows = args->max_m_hint;
  operands.counts_ready = args->counts_ready != 0;
  operands.split_k = args->split_k;
  return launch_moe_gemm("m_grouped_fp8_gemm_nt_offset", operands, single(&args->out), stream);
}

int lc_m_grouped_fp8_gemm_nt_masked(const lc_m_grouped_fp8_gemm_nt_masked_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_m_grouped_fp8_gemm_nt_masked", args)) return status;
  Operands operands{args->a, args->sa, args->b, args->sb};
  operands.set_index(RowLayout::kMasked, "masked_m", args->masked_m, args->b.count);
  operands.mean_rows = args->expected_m;
  return launch_moe_gemm("m_grouped_fp8_gemm_nt_masked", operands, args->out, stream);
}

int lc_m_grouped_fp8_gemm_nt_contiguous(const lc_m_grouped_fp8_gemm_nt_contiguous_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_m_grouped_fp8_gemm_nt_contiguous", args)) return status;
  Operands operands{single(&args->a), single(&args->sa), args->b, args->sb};
  operands.set_index(RowLayout::kContiguous, "m_indices", args->m_indices, args->a.rows);
  return launch_moe_gemm("m_grouped_fp8_gemm_nt_contiguous", operands, single(&args->out), stream);
}

}  // extern "C"
