#include "moe_dispatch/moe_permute_quant.cuh"

#include "moe_dispatch/launch_config.h"

namespace longcat_ops::moe_dispatch {
namespace {

template <class Rows>
int launch_instance(const MoePermuteQuantParams& params, const Memory& memory, lc_stream_t stream) {
  const LaunchConfig config = launch_config<int32_t>("moe_permute_quant", params.warps);
  return launch(moe_permute_quant_kernel<Rows>, config, params, stream, memory);
}

int launch_moe_permute_quant(const lc_matrix* x, const int32_t* row_of, int32_t top_k, const int32_t* src_of,
                             int64_t rows, const lc_matrix* q, const lc_matrix* s, lc_stream_t stream) {
  MoePermuteQuantParams params{};
  params.x = x->data;
  params.q = static_cast<uint8_t*>(q->data);
  params.s = static_cast<float*>(s->data);
  params.stride_x = x->row_stride;
  params.stride_q = q->row_stride;
  params.stride_s_row = s->row_stride;
  params.stride_s_column = s->column_stride;
  params.plan = {row_of, src_of, rows, static_cast<uint32_t>(top_k)};
  params.warps = make_token_warps(x->rows, x->columns / device::kChunk);
  params.x_element = static_cast<Element>(x->dtype);

  const Memory memory = Memory()
                            .reads("x", x)
                            .reads("row_of", row_of, x->rows * top_k)
                            .reads("src_of", src_of, rows)
                            .updates("q", q)
                            .updates("s", s);
  constexpr int64_t kStoreBytes = sizeof(ptx::Vec16);
  const bool wide = chunks_aligned(x) && rows_aligned(q, kStoreBytes) && x->columns % kStoreBytes == 0;
  if (!wide) return launch_instance<AnyRows>(params, memory, stream);
  return visit_format(x->dtype,
                      [&](auto format) { return launch_instance<WideRows<decltype(format)>>(params, memory, stream); });
}

}  // namespace
}  // namespace longcat_ops::moe_dispatch

extern "C" int lc_moe_permute_quant(const lc_moe_permute_quant_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_moe_permute_quant", args)) return status;
  return longcat_ops::moe_dispatch::launch_moe_permute_quant(&args->x, args->row_of, args->top_k, args->src_of,
                                                             args->rows, &args->q, &args->s, stream);
}
