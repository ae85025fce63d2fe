#include "gemm/moe_swiglu_gemm.cuh"

#include "gemm/operands.h"

namespace longcat_ops::moe_gemm {
namespace {

int launch_moe_swiglu_gemm(const char* op, const Operands& o, const lc_matrix* h, const lc_matrix* sh,
                           lc_stream_t stream) {
  MoeGemmProblem problem = problem_of(o);
  problem.swiglu = true;
  const MoeGemmConfig config = choose_moe_gemm_config(problem);
  if (config.grid == 0) return set_status(LC_OK, "");

  MoeSwigluGemmParams params{};
  if (const int status = set_params(o, problem, config, params.gemm)) return status;
  const lc_stack codes = single(h), scales = single(sh);
  params.h = stack_of<uint8_t>(codes);
  params.sh = stack_of<float>(scales);
  params.bulk_h = bulk_rows(codes, 1) && problem.n / 2 % 16 == 0;

  const auto kernel = !problem.mapped ? moe_swiglu_gemm_kernel<kSmallTokens, false>
                      : config.small  ? moe_swiglu_gemm_kernel<kSmallTokens, true>
                                      : moe_swiglu_gemm_kernel<kSwigluTokens, true>;
  LaunchConfig launch_config{op, config.grid, kThreads, static_cast<int>(config.smem_bytes)};
  if (!config.small) launch_config.registers = kFewestRegisters;
  return launch(kernel, launch_config, params, stream, memory_of(o).updates("h", &codes).updates("sh", &scales));
}

}  // namespace
}  // namespace longcat_ops::moe_gemm

extern "C" int lc_m_grouped_fp8_swiglu_gemm_nt_offset(const lc_m_grouped_fp8_swiglu_gemm_nt_offset_args* args,
                                                      lc_stream_t stream) {
  using namespace longcat_ops::moe_gemm;
  if (const int status = longcat_ops::check_args("lc_m_grouped_fp8_swiglu_gemm_nt_offset", args)) return status;
  Operands operands{single(&args->a), single(&args->sa), args->gate_up, args->s_gate_up};
  operands.set_index(RowLayout::kOffset, "offsets", args->offsets, args->gate_up.count + 1);
  operands.max_rows = args->max_m_hint;
  operands.counts_ready = args->counts_ready != 0;
  return launch_moe_swiglu_gemm("m_grouped_fp8_swiglu_gemm_nt_offset", operands, &args->h, &args->sh, stream);
}
