#include "rows/silu_and_mul.cuh"

#include "launch/instances.h"

namespace longcat_ops::rows {
namespace {

int launch_silu_and_mul(const lc_matrix* gate_up, const lc_matrix* out, lc_stream_t stream) {
  const RowsConfig config = choose_rows_config(out->rows, out->columns);
  const SiluAndMulParams params{
      .gate_up = gate_up->data,
      .out = out->data,
      .stride_gate_up = gate_up->row_stride,
      .stride_out = out->row_stride,
      .tiles = make_row_tiles(out->rows, out->columns, config),
  };
  // up starts on a 16-byte boundary where gate does and its width is whole chunks.
  const bool wide = out->columns % kRowsChunk == 0 && chunks_aligned(gate_up) && chunks_aligned(out);
  const Memory memory = Memory().reads("gate_up", gate_up).writes("out", out);
  return visit_format(out->dtype, [&](auto format) {
    using Format = decltype(format);
    return launch(wide ? silu_and_mul_kernel<Format, true> : silu_and_mul_kernel<Format, false>,
                  {"silu_and_mul", config.blocks, kRowsThreads}, params, stream, memory);
  });
}

}  // namespace
}  // namespace longcat_ops::rows

extern "C" int lc_silu_and_mul(const lc_silu_and_mul_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_silu_and_mul", args)) return status;
  return longcat_ops::rows::launch_silu_and_mul(&args->gate_up, &args->out, stream);
}
