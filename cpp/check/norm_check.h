// Argument checks of the normalisation ops.
#pragma once

#include "check/arguments.h"

namespace longcat_ops {

void check_rms_norm(const Arguments& a);
void check_rms_norm_quant_fp8(const Arguments& a);

}  // namespace longcat_ops
