// Argument checks of routing, dispatch and combine.
#pragma once

#include "check/arguments.h"

namespace longcat_ops {

void check_moe_route(const Arguments& a);
void check_moe_plan(const Arguments& a);
void check_moe_permute_quant(const Arguments& a);
void check_moe_combine(const Arguments& a);
void check_fused_moe(const Arguments& a);

}  // namespace longcat_ops
