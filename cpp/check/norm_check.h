// Argument checks of the normalisation ops. Outputs may be null: `supports` asks before anything is allocated.
#pragma once

#include "check/tensor_desc.h"

namespace longcat_ops {

void check_rms_norm(const TensorDesc& x, const TensorDesc& weight, double eps, const TensorDesc* y);
void check_rms_norm_quant_fp8(const TensorDesc& x, const TensorDesc& weight, double eps, const TensorDesc* residual,
                              const TensorDesc* q, const TensorDesc* s, const TensorDesc* y,
                              const TensorDesc* residual_out);

}  // namespace longcat_ops
