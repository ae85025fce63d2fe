#include "gemm/moe_gemm_launch.h"

extern "C" {

using namespace longcat_ops::moe_gemm;

int lc_fp8_gemm_nt(const lc_fp8_gemm_nt_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_fp8_gemm_nt", args)) return status;
  Operands operands{single(&args->a), single(&args->sa), single(&args->b), single(&args->sb)};
  operands.split_k = args->split_k;
  return launch_moe_gemm<Operand::kFp8>("fp8_gemm_nt", operands, single(&args->out), stream);
}

int lc_m_grouped_fp8_gemm_nt_offset(const lc_m_grouped_fp8_gemm_nt_offset_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_m_grouped_fp8_gemm_nt_offset", args)) return status;
  Operands operands{single(&args->a), single(&args->sa), args->b, args->sb};
  operands.set_index(RowLayout::kOffset, "offsets", args->offsets, args->b.count + 1);
  operands.max_rows = args->max_m_hint;
  operands.counts_ready = args->counts_ready != 0;
  operands.split_k = args->split_k;
  return launch_moe_gemm<Operand::kFp8>("m_grouped_fp8_gemm_nt_offset", operands, single(&args->out), stream);
}

int lc_m_grouped_fp8_gemm_nt_masked(const lc_m_grouped_fp8_gemm_nt_masked_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_m_grouped_fp8_gemm_nt_masked", args)) return status;
  Operands operands{args->a, args->sa, args->b, args->sb};
  operands.set_index(RowLayout::kMasked, "masked_m", args->masked_m, args->b.count);
  operands.mean_rows = args->expected_m;
  return launch_moe_gemm<Operand::kFp8>("m_grouped_fp8_gemm_nt_masked", operands, args->out, stream);
}

int lc_m_grouped_fp8_gemm_nt_contiguous(const lc_m_grouped_fp8_gemm_nt_contiguous_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_m_grouped_fp8_gemm_nt_contiguous", args)) return status;
  Operands operands{single(&args->a), single(&args->sa), args->b, args->sb};
  operands.set_index(RowLayout::kContiguous, "m_indices", args->m_indices, args->a.rows);
  return launch_moe_gemm<Operand::kFp8>("m_grouped_fp8_gemm_nt_contiguous", operands, single(&args->out), stream);
}

}  // extern "C"
