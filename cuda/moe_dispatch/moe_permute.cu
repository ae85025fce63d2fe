#include "moe_dispatch/moe_permute.cuh"

#include "moe_dispatch/launch_config.h"

namespace longcat_ops::moe_dispatch {
namespace {

int launch_moe_permute(const lc_matrix* x, const int32_t* row_of, int32_t top_k, const int32_t* src_of, int64_t rows,
                       const lc_matrix* out, lc_stream_t stream) {
  const int64_t halves = element_bytes(x->dtype) / static_cast<int64_t>(sizeof(uint16_t));  // per element
  MoePermuteParams params{};
  params.x = static_cast<const uint16_t*>(x->data);
  params.out = static_cast<uint16_t*>(out->data);
  params.stride_x = x->row_stride * halves;
  params.stride_out = out->row_stride * halves;
  params.plan = {row_of, src_of, rows, static_cast<uint32_t>(top_k)};
  params.warps = make_token_warps(x->rows, x->columns * halves / device::kChunk);

  const Memory memory =
      Memory().reads("x", x).reads("row_of", row_of, x->rows * top_k).reads("src_of", src_of, rows).updates("out", out);
  const LaunchConfig config = launch_config<int32_t>("moe_permute", params.warps);
  const bool wide = chunks_aligned(x) && chunks_aligned(out);
  return launch(wide ? moe_permute_kernel<true> : moe_permute_kernel<false>, config, params, stream, memory);
}

}  // namespace
}  // namespace longcat_ops::moe_dispatch

extern "C" int lc_moe_permute(const lc_moe_permute_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_moe_permute", args)) return status;
  return longcat_ops::moe_dispatch::launch_moe_permute(&args->x, args->row_of, args->top_k, args->src_of, args->rows,
                                                       &args->out, stream);
}
