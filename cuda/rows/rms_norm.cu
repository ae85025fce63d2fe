#include "rows/rms_norm.cuh"

#include "launch/instances.h"

namespace longcat_ops::rows {
namespace {

int launch_rms_norm(const lc_rms_norm_args& args, lc_stream_t stream) {
  const lc_matrix &x = args.x, &y = args.y;
  const lc_matrix *residual = given(args.residual), *residual_out = given(args.residual_out);
  const lc_matrix weight{const_cast<float*>(args.weight), LC_F32, 1, x.columns, x.columns, 1};
  const int threads = choose_norm_threads(x.columns);
  const RmsNormParams params{
      .x = x.data,
      .residual = args.residual.data,
      .weight = args.weight,
      .y = y.data,
      .residual_out = args.residual_out.data,
      .stride_x = x.row_stride,
      .stride_residual = args.residual.row_stride,
      .stride_y = y.row_stride,
      .stride_residual_out = args.residual_out.row_stride,
      .width = x.columns,
      .threads = static_cast<uint32_t>(threads),
      .eps = static_cast<float>(args.eps),
  };
  const bool wide = x.columns % kRowsChunk == 0 && chunks_aligned(&x) && chunks_aligned(residual) &&
                    chunks_aligned(&weight) && chunks_aligned(&y) && chunks_aligned(residual_out);
  const Memory memory = Memory()
                            .reads("x", &x)
                            .reads("residual", residual)
                            .reads("weight", &weight)
                            .writes("y", &y)
                            .writes("residual_out", residual_out);
  return visit_format(x.dtype, [&](auto format) {
    using Format = decltype(format);
    return launch(wide ? rms_norm_kernel<Format, true> : rms_norm_kernel<Format, false>,
                  {"rms_norm", x.rows, threads, kRmsNormSmemBytes}, params, stream, memory);
  });
}

}  // namespace
}  // namespace longcat_ops::rows

extern "C" int lc_rms_norm(const lc_rms_norm_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_rms_norm", args)) return status;
  return longcat_ops::rows::launch_rms_norm(*args, stream);
}
