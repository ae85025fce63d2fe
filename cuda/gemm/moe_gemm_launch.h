// Shared by the launchers of both formats: chooses the instance of moe_gemm_kernel.
#pragma once

#include "gemm/moe_gemm.cuh"
#include "gemm/operands.h"

namespace longcat_ops::moe_gemm {

inline OutputType output_type(int32_t dtype) {
  return dtype == LC_F32 ? OutputType::kFloat32 : dtype == LC_F16 ? OutputType::kFloat16 : OutputType::kBFloat16;
}

template <Operand kOperand>
int launch_moe_gemm(const char* op, const Operands& o, const lc_stack& out, lc_stream_t stream) {
  constexpr auto kSmallSplit = moe_gemm_kernel<kOperand, kSmallTokens, true, Cluster::kSplit>;
  constexpr auto kSmallCopied = moe_gemm_kernel<kOperand, kSmallTokens, false, Cluster::kSplit>;
  constexpr auto kSmall = moe_gemm_kernel<kOperand, kSmallTokens, true, Cluster::kNone>;
  constexpr auto kPaired = moe_gemm_kernel<kOperand, kMaxTokens, true, Cluster::kPairs>;
  constexpr auto kLarge = moe_gemm_kernel<kOperand, kMaxTokens, true, Cluster::kNone>;

  MoeGemmProblem problem = problem_of(kOperand, o);
  problem.clusters = o.split_k > 1 ? resident_clusters(problem.mapped ? kSmallSplit : kSmallCopied, kThreads,
                                                       static_cast<int>(o.split_k))
                                   : resident_clusters(kPaired, kThreads, 2);
  const MoeGemmConfig config = choose_moe_gemm_config(problem);
  if (config.grid == 0) return set_status(LC_OK, "");

  MoeGemmParams params{};
  if (const int status = set_params(o, problem, config, params)) return status;
  params.output = stack_of<void>(out);
  params.output_type = output_type(out.matrix.dtype);
  params.bulk_output = out.matrix.dtype == LC_BF16 && bulk_rows(out);

  const auto kernel = !problem.mapped ? kSmallCopied
                      : o.split_k > 1 ? kSmallSplit
                      : config.small  ? kSmall
                      : config.paired ? kPaired
                                      : kLarge;
  LaunchConfig launch_config{op, config.grid, kThreads, static_cast<int>(config.smem_bytes)};
  launch_config.cluster = config.paired ? 2 : static_cast<int>(o.split_k);
  if (!config.small) launch_config.registers = kFewestRegisters;
  return launch(kernel, launch_config, params, stream, memory_of(o).updates("out", &out));
}

}  // namespace longcat_ops::moe_gemm
