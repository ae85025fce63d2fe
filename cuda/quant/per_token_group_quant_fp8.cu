#include "quant/per_token_group_quant_fp8.cuh"

#include "launch/instances.h"

namespace longcat_ops::quant {
namespace {

constexpr uint32_t kShortGroupChunks = 16;  // up to 128 columns: a half-warp, one chunk per lane

template <class Format, int kLanes, int kRows, int kHeld>
int launch_instance(const PerTokenGroupQuantFp8Params& params, bool wide, const Memory& memory, lc_stream_t stream) {
  const LaunchConfig config{"per_token_group_quant_fp8", count_blocks(params.tiles, kRows), kTileThreads};
  const auto kernel = wide ? per_token_group_quant_fp8_kernel<Format, kLanes, kRows, kHeld, true>
                           : per_token_group_quant_fp8_kernel<Format, kLanes, kRows, kHeld, false>;
  return launch(kernel, config, params, stream, memory);
}

int launch_per_token_group_quant_fp8(const lc_matrix* x, int64_t group_size, const lc_matrix* q, const lc_matrix* s,
                                     lc_stream_t stream) {
  PerTokenGroupQuantFp8Params params{};
  params.x = x->data;
  params.q = static_cast<uint8_t*>(q->data);
  params.s = static_cast<float*>(s->data);
  params.stride_x = x->row_stride;
  params.stride_q = q->row_stride;
  params.stride_s_row = s->row_stride;
  params.stride_s_column = s->column_stride;
  params.chunks = static_cast<uint32_t>(x->columns / device::kChunk);
  // A group longer than the row is the row.
  params.group_chunks = static_cast<uint32_t>((group_size < x->columns ? group_size : x->columns) / device::kChunk);
  if (x->rows == 0 || params.chunks == 0) return set_status(LC_OK, "");
  const bool short_group = params.group_chunks <= kShortGroupChunks;
  params.tiles = make_row_tiles(x->rows, ceil_div(params.chunks, params.group_chunks), short_group ? 16 : 32);

  const bool wide = chunks_aligned(x) && chunks_aligned(q);
  const Memory memory = Memory().reads("x", x).writes("q", q).writes("s", s);
  return visit_format(x->dtype, [&](auto format) {
    using Format = decltype(format);
    if (!short_group) return launch_instance<Format, 32, 1, 4>(params, wide, memory, stream);
    if (fills_device(count_blocks(params.tiles, 1)))
      return launch_instance<Format, 16, 4, 1>(params, wide, memory, stream);
    return launch_instance<Format, 16, 1, 1>(params, wide, memory, stream);
  });
}

}  // namespace
}  // namespace longcat_ops::quant

extern "C" int lc_per_token_group_quant_fp8(const lc_per_token_group_quant_fp8_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_per_token_group_quant_fp8", args)) return status;
  return longcat_ops::quant::launch_per_token_group_quant_fp8(&args->x, args->group_size, &args->q, &args->s, stream);
}
