#include "quant/dequant_fp8.cuh"

#include "launch/instances.h"

namespace longcat_ops::quant {
namespace {

template <class Format, int kRows>
int launch_instance(const DequantFp8Params& params, bool wide, const Memory& memory, lc_stream_t stream) {
  const LaunchConfig config{"dequant_fp8", count_blocks(params.tiles, kRows), kTileThreads};
  const auto kernel = wide ? dequant_fp8_kernel<Format, kRows, true> : dequant_fp8_kernel<Format, kRows, false>;
  return launch(kernel, config, params, stream, memory);
}

int launch_dequant_fp8(const lc_matrix* q, const lc_matrix* s, int64_t group_size, const lc_matrix* out,
                       lc_stream_t stream) {
  // As in scales_are_per_row of cpp/check/scales.h, the shape of s tells the granularity.
  const bool per_row = s->rows == q->rows && s->columns == ceil_div(q->columns, group_size);
  const int64_t group = per_row ? group_size : kQuantBlock;
  DequantFp8Params params{};
  params.q = static_cast<const uint8_t*>(q->data);
  params.s = static_cast<const float*>(s->data);
  params.out = out->data;
  params.columns = q->columns;
  params.stride_q = q->row_stride;
  params.stride_s_row = s->row_stride;
  params.stride_s_column = s->column_stride;
  params.stride_out = out->row_stride;
  const int64_t chunks = ceil_div(q->columns, device::kChunk);
  params.group_chunks = static_cast<uint32_t>(group < chunks * device::kChunk ? group / device::kChunk : chunks);
  params.row_shift = per_row ? 0 : 7;
  if (q->rows == 0 || chunks == 0) return set_status(LC_OK, "");
  params.tiles = make_row_tiles(q->rows, chunks, 1);

  const bool wide = q->columns % device::kChunk == 0 && chunks_aligned(q) && chunks_aligned(out);
  const Memory memory = Memory().reads("q", q).reads("s", s).writes("out", out);
  return visit_format(out->dtype, [&](auto format) {
    using Format = decltype(format);
    if (fills_device(count_blocks(params.tiles, 1))) return launch_instance<Format, 4>(params, wide, memory, stream);
    return launch_instance<Format, 1>(params, wide, memory, stream);
  });
}

}  // namespace
}  // namespace longcat_ops::quant

extern "C" int lc_dequant_fp8(const lc_dequant_fp8_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_dequant_fp8", args)) return status;
  return longcat_ops::quant::launch_dequant_fp8(&args->q, &args->s, args->group_size, &args->out, stream);
}
