#include "rows/add_rows.cuh"

#include "launch/instances.h"

namespace longcat_ops::rows {
namespace {

int launch_add_rows(const lc_matrix* x, const lc_matrix* y, const lc_matrix* out, lc_stream_t stream) {
  const RowsConfig config = choose_rows_config(out->rows, out->columns);
  const AddRowsParams params{
      .x = x->data,
      .y = y->data,
      .out = out->data,
      .stride_x = x->row_stride,
      .stride_y = y->row_stride,
      .stride_out = out->row_stride,
      .tiles = make_row_tiles(out->rows, out->columns, config),
  };
  const bool wide = out->columns % kRowsChunk == 0 && chunks_aligned(x) && chunks_aligned(y) && chunks_aligned(out);
  const Memory memory = Memory().reads("x", x).reads("y", y).writes("out", out);
  return visit_format(out->dtype, [&](auto format) {
    using Format = decltype(format);
    return launch(wide ? add_rows_kernel<Format, true> : add_rows_kernel<Format, false>,
                  {"add_rows", config.blocks, kRowsThreads}, params, stream, memory);
  });
}

}  // namespace
}  // namespace longcat_ops::rows

extern "C" int lc_add_rows(const lc_add_rows_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_add_rows", args)) return status;
  return longcat_ops::rows::launch_add_rows(&args->x, &args->y, &args->out, stream);
}
