// Shared by the launchers of both formats: chooses the instance of moe_swiglu_gemm_kernel.
#pragma once

#include "gemm/moe_swiglu_gemm.cuh"
#include "gemm/operands.h"

namespace longcat_ops::moe_gemm {

// sh without data: h is bf16.
template <Operand kOperand>
int launch_moe_swiglu_gemm(const char* op, const Operands& o, const lc_matrix* h, const lc_matrix* sh,
                           lc_stream_t stream) {
  MoeGemmProblem problem = problem_of(kOperand, o);
  problem.swiglu = true;
  problem.quantised = h->dtype == LC_E4M3;
  const MoeGemmConfig config = choose_moe_gemm_config(problem);
  if (config.grid == 0) return set_status(LC_OK, "");

  MoeSwigluGemmParams params{};
  if (const int status = set_params(o, problem, config, params.gemm)) return status;
  const lc_stack values = single(h), scales = single(sh);
  params.h = byte_stack<uint8_t>(values);
  params.sh = stack_of<float>(scales);
  params.quantised = problem.quantised;
  params.bulk_h = bulk_rows(values) && problem.n / 2 * element_bytes(h->dtype) % 16 == 0;

  const auto kernel = !problem.mapped ? moe_swiglu_gemm_kernel<kOperand, kSmallTokens, false>
                      : config.small  ? moe_swiglu_gemm_kernel<kOperand, kSmallTokens, true>
                                      : moe_swiglu_gemm_kernel<kOperand, kSwigluTokens, true>;
  LaunchConfig launch_config{op, config.grid, kThreads, static_cast<int>(config.smem_bytes)};
  if (!config.small) launch_config.registers = kFewestRegisters;
  return launch(kernel, launch_config, params, stream, memory_of(o).updates("h", &values).updates("sh", &scales));
}

}  // namespace longcat_ops::moe_gemm
