#include "quant/silu_and_mul_quant_fp8.cuh"

#include "launch/instances.h"

namespace longcat_ops::quant {
namespace {

template <class Format, int kRows>
int launch_instance(const SiluAndMulQuantFp8Params& params, bool wide, const Memory& memory, lc_stream_t stream) {
  const LaunchConfig config{"silu_and_mul_quant_fp8", count_blocks(params.tiles, kRows), kTileThreads};
  const auto kernel =
      wide ? silu_and_mul_quant_fp8_kernel<Format, kRows, true> : silu_and_mul_quant_fp8_kernel<Format, kRows, false>;
  return launch(kernel, config, params, stream, memory);
}

int launch_silu_and_mul_quant_fp8(const lc_matrix* gate_up, const lc_matrix* q, const lc_matrix* s,
                                  lc_stream_t stream) {
  SiluAndMulQuantFp8Params params{};
  params.gate_up = gate_up->data;
  params.q = static_cast<uint8_t*>(q->data);
  params.s = static_cast<float*>(s->data);
  params.columns = gate_up->columns / 2;
  params.stride_gate_up = gate_up->row_stride;
  params.stride_q = q->row_stride;
  params.stride_s_row = s->row_stride;
  params.stride_s_column = s->column_stride;
  params.chunks = static_cast<uint32_t>(params.columns / device::kChunk);
  if (gate_up->rows == 0 || params.chunks == 0) return set_status(LC_OK, "");
  params.tiles = make_row_tiles(gate_up->rows, ceil_div(params.columns, kQuantBlock), 16);

  // up starts on a 16-byte boundary where gate does: columns is a multiple of 8.
  const bool wide = chunks_aligned(gate_up) && chunks_aligned(q);
  const Memory memory = Memory().reads("gate_up", gate_up).writes("q", q).writes("s", s);
  return visit_format(gate_up->dtype, [&](auto format) {
    using Format = decltype(format);
    if (fills_device(count_blocks(params.tiles, 1))) return launch_instance<Format, 2>(params, wide, memory, stream);
    return launch_instance<Format, 1>(params, wide, memory, stream);
  });
}

}  // namespace
}  // namespace longcat_ops::quant

extern "C" int lc_silu_and_mul_quant_fp8(const lc_silu_and_mul_quant_fp8_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_silu_and_mul_quant_fp8", args)) return status;
  return longcat_ops::quant::launch_silu_and_mul_quant_fp8(&args->gate_up, &args->q, &args->s, stream);
}
