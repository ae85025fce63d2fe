#include "quant/rms_norm_quant_fp8.cuh"

#include "launch/instances.h"

namespace longcat_ops::quant {
namespace {

template <class Format, int kHeld, bool kWide>
int launch_instance(const RmsNormQuantFp8Params& params, int64_t rows, const Memory& memory, lc_stream_t stream) {
  const LaunchConfig config{"rms_norm_quant_fp8", rows, static_cast<int>(params.threads), kNormSmemBytes};
  return launch(rms_norm_quant_fp8_kernel<Format, kHeld, kWide>, config, params, stream, memory);
}

// NOTE: an instance's chunks per thread set its registers, not the order of the sum, so a narrow row may run with more.
template <class Format>
int launch_format(const RmsNormQuantFp8Params& params, int64_t rows, bool wide, const Memory& memory,
                  lc_stream_t stream) {
  const uint32_t per_thread = ceil_div(params.chunks, params.threads);
  if (per_thread > 8) {
    return wide ? launch_instance<Format, 0, true>(params, rows, memory, stream)
                : launch_instance<Format, 0, false>(params, rows, memory, stream);
  }
  if (!wide) return launch_instance<Format, 8, false>(params, rows, memory, stream);
  switch (per_thread) {
    case 1: return launch_instance<Format, 1, true>(params, rows, memory, stream);
    case 2: return launch_instance<Format, 2, true>(params, rows, memory, stream);
    case 3: return launch_instance<Format, 3, true>(params, rows, memory, stream);
    case 4: return launch_instance<Format, 4, true>(params, rows, memory, stream);
    default: return launch_instance<Format, 8, true>(params, rows, memory, stream);
  }
}

int launch_rms_norm_quant_fp8(const lc_matrix* x, const float* weight, double eps, const lc_matrix* residual,
                              const lc_matrix* q, const lc_matrix* s, const lc_matrix* y, const lc_matrix* residual_out,
                              lc_stream_t stream) {
  RmsNormQuantFp8Params params{};
  params.x = x->data;
  params.weight = weight;
  params.y = y->data;
  params.q = static_cast<uint8_t*>(q->data);
  params.s = static_cast<float*>(s->data);
  params.stride_x = x->row_stride;
  params.stride_y = y->row_stride;
  params.stride_q = q->row_stride;
  params.stride_s_row = s->row_stride;
  params.stride_s_column = s->column_stride;
  if (residual != nullptr) {
    params.residual = residual->data;
    params.residual_out = residual_out->data;
    params.stride_residual = residual->row_stride;
    params.stride_residual_out = residual_out->row_stride;
  }
  params.chunks = static_cast<uint32_t>(x->columns / device::kChunk);
  params.threads = norm_threads(params.chunks);
  params.width = static_cast<float>(x->columns);
  params.eps = static_cast<float>(eps);

  lc_matrix weights{const_cast<float*>(weight), LC_F32, 1, x->columns, x->columns, 1};
  const bool wide = chunks_aligned(x) && chunks_aligned(residual) && chunks_aligned(residual_out) &&
                    chunks_aligned(y) && chunks_aligned(q) && chunks_aligned(&weights);
  const Memory memory = Memory()
                            .reads("x", x)
                            .reads("weight", &weights)
                            .reads("residual", residual)
                            .writes("q", q)
                            .writes("s", s)
                            .writes("y", y)
                            .writes("residual_out", residual_out);
  return visit_format(
      x->dtype, [&](auto format) { return launch_format<decltype(format)>(params, x->rows, wide, memory, stream); });
}

}  // namespace
}  // namespace longcat_ops::quant

extern "C" int lc_rms_norm_quant_fp8(const lc_rms_norm_quant_fp8_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_rms_norm_quant_fp8", args)) return status;
  return longcat_ops::quant::launch_rms_norm_quant_fp8(&args->x, args->weight, args->eps,
                                                       longcat_ops::given(args->residual), &args->q, &args->s, &args->y,
                                                       longcat_ops::given(args->residual_out), stream);
}
