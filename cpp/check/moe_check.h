// Argument checks of routing, dispatch and combine. Outputs may be null: `supports` asks before anything is allocated.
#pragma once

#include "check/tensor_desc.h"

namespace longcat_ops {

struct RouteOutputs {
  const TensorDesc *ids, *weights, *zero_weight, *num_real, *counts, *errors;
};

struct RouteOptions {
  int64_t top_k, num_experts, num_zero_experts;
  double scale;
};

void check_moe_route(const TensorDesc& logits, const TensorDesc& bias, const TensorDesc* num_valid,
                     const RouteOptions& options, const RouteOutputs& outputs);
void check_moe_plan(const TensorDesc& ids, int64_t num_local, const TensorDesc* weights, const TensorDesc* offsets,
                    const TensorDesc* row_of, const TensorDesc* src_of);
void check_moe_permute_quant(const TensorDesc& x, const TensorDesc& row_of, const TensorDesc& src_of,
                             const TensorDesc* q, const TensorDesc* s);
void check_moe_combine(const TensorDesc& y, const TensorDesc& row_of, const TensorDesc& weights,
                       const TensorDesc& zero_weight, const TensorDesc& x, const TensorDesc* add,
                       const TensorDesc* out);

// Each weight is a floating tensor without scales, or e4m3 with them.
struct ExpertWeights {
  const TensorDesc& gate_up;
  const TensorDesc* gate_up_scales;
  const TensorDesc& down;
  const TensorDesc* down_scales;
};

// All three or none.
struct PlanTables {
  const TensorDesc *offsets, *row_of, *src_of;
};

void check_fused_moe(const TensorDesc& x, const TensorDesc& ids, const TensorDesc& weights,
                     const TensorDesc& zero_weight, const ExpertWeights& experts, const PlanTables& plan,
                     const TensorDesc* out);

}  // namespace longcat_ops
