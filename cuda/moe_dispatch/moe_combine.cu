#include "moe_dispatch/moe_combine.cuh"

#include "moe_dispatch/launch_config.h"

namespace longcat_ops::moe_dispatch {
namespace {

static_assert(sizeof(RowAndWeight) == kCombineEntryBytes);
static_assert(static_cast<int>(Element::kF32) == LC_F32 && static_cast<int>(Element::kF16) == LC_F16 &&
              static_cast<int>(Element::kBF16) == LC_BF16);

template <class Rows>
int launch_instance(const MoeCombineParams& params, const Memory& memory, lc_stream_t stream) {
  const LaunchConfig config = launch_config<RowAndWeight>("moe_combine", params.warps);
  return launch(moe_combine_kernel<Rows>, config, params, stream, memory);
}

int launch_moe_combine(const lc_matrix* y, const int32_t* row_of, int32_t top_k, const float* weights,
                       const float* zero_weight, const lc_matrix* x, const lc_matrix* add, const lc_matrix* out,
                       lc_stream_t stream) {
  MoeCombineParams params{};
  params.y = y->data;
  params.x = x->data;
  params.out = out->data;
  params.row_of = row_of;
  params.weights = weights;
  params.zero_weight = zero_weight;
  params.rows = y->rows;
  params.stride_y = y->row_stride;
  params.stride_x = x->row_stride;
  params.stride_out = out->row_stride;
  if (add != nullptr) {
    params.add = add->data;
    params.stride_add = add->row_stride;
  }
  params.warps = make_token_warps(x->rows, x->columns / device::kChunk);
  params.top_k = static_cast<uint32_t>(top_k);
  params.y_element = static_cast<Element>(y->dtype);
  params.x_element = static_cast<Element>(x->dtype);

  const int64_t choices = x->rows * top_k;
  const Memory memory = Memory()
                            .reads("y", y)
                            .reads("row_of", row_of, choices)
                            .reads("weights", weights, choices)
                            .reads("zero_weight", zero_weight, x->rows)
                            .reads("x", x)
                            .reads("add", add)
                            .writes("out", out);
  const bool wide =
      y->dtype == x->dtype && chunks_aligned(y) && chunks_aligned(x) && chunks_aligned(add) && chunks_aligned(out);
  if (!wide) return launch_instance<AnyRows>(params, memory, stream);
  return visit_format(x->dtype,
                      [&](auto format) { return launch_instance<WideRows<decltype(format)>>(params, memory, stream); });
}

}  // namespace
}  // namespace longcat_ops::moe_dispatch

extern "C" int lc_moe_combine(const lc_moe_combine_args* args, lc_stream_t stream) {
  if (const int status = longcat_ops::check_args("lc_moe_combine", args)) return status;
  return longcat_ops::moe_dispatch::launch_moe_combine(&args->y, args->row_of, args->top_k, args->weights,
                                                       args->zero_weight, &args->x, longcat_ops::given(args->add),
                                                       &args->out, stream);
}
