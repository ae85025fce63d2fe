// Argument check of rms_norm. The output may be null: `supports` asks before anything is allocated.
#pragma once

#include "config/tensor_desc.h"

namespace longcat_ops {

void check_rms_norm(const TensorDesc& x, const TensorDesc& weight, double eps, const TensorDesc* y);

}  // namespace longcat_ops
