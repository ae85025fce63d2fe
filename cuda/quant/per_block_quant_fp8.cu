#include "quant/per_block_quant_fp8.cuh"

#include "launch/instances.h"

namespace longcat_ops::quant {
namespace {

int launch_per_block_quant_fp8(const lc_matrix* w, const lc_matrix* q, const lc_matrix* s, lc_stream_t stream) {
  PerBlockQuantFp8Params params{};
  params.w = w->data;
  params.q = static_cast<uint8_t*>(q->data);
  params.s = static_cast<float*>(s->data);
  params.rows = w->rows;
  params.stride_w = w->row_stride;
  params.stride_q = q->row_stride;
  params.stride_s_row = s->row_stride;
  params.stride_s_column = s->column_stride;
  params.chunks = static_cast<uint32_t>(w->columns / device::kChunk);
  params.column_blocks = static_cast<uint32_t>(ceil_div(w->columns, kQuantBlock));

  const LaunchConfig config{"per_block_quant_fp8", ceil_div(w->rows, kQuantBlock) * params.column_blocks,
                            kBlockQuantThreads, kBlockQuantSmemBytes};
  const bool wide = chunks_aligned(w) && chunks_aligned(q);
  const Memory memory = Memory().reads("w", w).writes("q", q).writes("s", s);
  return visit_format(w->dtype, [&](auto format) {
    using Format = decltype(format);
    const auto kernel = wide ? per_block_quant_fp8_kernel<Format, true> : per_block_quant_fp8_kernel<Format, false>;
    return launch(kernel, config, params, stream, memory);
  });
}

}  // namespace
}  // namespace longcat_ops::quant

extern "C" int lc_per_block_quant_fp8(const lc_per_block_quant_fp8_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_per_block_quant_fp8", args)) return status;
  return longcat_ops::quant::launch_per_block_quant_fp8(&args->w, &args->q, &args->s, stream);
}
