#include "check/norm_check.h"

#include "ops/table.h"

namespace longcat_ops {

std::vector<OpRow> norm_ops() {
  return {
      // x [T, H], weight f32 [H], y [T, H] of x's dtype
      {"rms_norm(Tensor x, Tensor weight, float eps, Tensor(a!) y) -> ()", check_rms_norm},
      // as rms_norm, on x + residual if there is one, which residual_out keeps; q e4m3 [T, H], s f32 [T, ceil(H / 128)]
      {"rms_norm_quant_fp8(Tensor x, Tensor weight, float eps, Tensor? residual, Tensor(a!) q, Tensor(b!) s, "
       "Tensor(c!) y, Tensor(d!)? residual_out) -> ()",
       check_rms_norm_quant_fp8},
  };
}

}  // namespace longcat_ops
