#include "gemm/moe_swiglu_gemm_launch.h"

extern "C" int lc_m_grouped_fp8_swiglu_gemm_nt_offset(const lc_m_grouped_fp8_swiglu_gemm_nt_offset_args* args,
                                                      lc_stream_t stream) {
  using namespace longcat_ops::moe_gemm;
  if (const int status = longcat_ops::check_args("lc_m_grouped_fp8_swiglu_gemm_nt_offset", args)) return status;
  Operands operands{single(&args->a), single(&args->sa), args->gate_up, args->s_gate_up};
  operands.set_index(RowLayout::kOffset, "offsets", args->offsets, args->gate_up.count + 1);
  operands.max_rows = args->max_m_hint;
  operands.counts_ready = args->counts_ready != 0;
  return launch_moe_swiglu_gemm<Operand::kFp8>("m_grouped_fp8_swiglu_gemm_nt_offset", operands, &args->h, &args->sh,
                                               stream);
}
