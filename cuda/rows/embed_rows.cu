#include "rows/embed_rows.cuh"

#include "launch/instances.h"

namespace longcat_ops::rows {
namespace {

int launch_embed_rows(const lc_matrix* table, const int64_t* ids, const lc_matrix* out, lc_stream_t stream) {
  const int64_t halves = element_bytes(table->dtype) / static_cast<int64_t>(sizeof(uint16_t));  // per element
  const int64_t width = table->columns * halves;
  const RowsConfig config = choose_rows_config(out->rows, width);
  const EmbedRowsParams params{
      .table = static_cast<const uint16_t*>(table->data),
      .ids = ids,
      .out = static_cast<uint16_t*>(out->data),
      .stride_table = table->row_stride * halves,
      .stride_out = out->row_stride * halves,
      .vocabulary = table->rows,
      .tiles = make_row_tiles(out->rows, width, config),
  };
  const bool wide = width % kRowsChunk == 0 && chunks_aligned(table) && chunks_aligned(out);
  const Memory memory = Memory().reads("table", table).reads("ids", ids, out->rows).writes("out", out);
  return launch(wide ? embed_rows_kernel<true> : embed_rows_kernel<false>, {"embed_rows", config.blocks, kRowsThreads},
                params, stream, memory);
}

}  // namespace
}  // namespace longcat_ops::rows

extern "C" int lc_embed_rows(const lc_embed_rows_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_embed_rows", args)) return status;
  return longcat_ops::rows::launch_embed_rows(&args->table, args->ids, &args->out, stream);
}
