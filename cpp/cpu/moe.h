// CPU kernels of routing, dispatch and combine. Free of torch; each works on a range, so that the caller owns the
// threads. Results do not depend on how the range is cut.
#pragma once

#include "cpu/quant.h"

namespace longcat_ops::cpu {

struct RouteParams {
  DType dtype;    // of logits
  Matrix logits;  // [tokens, experts], column stride 1
  const float* bias;
  int64_t tokens, experts, num_zero_experts, top_k, num_valid;
  float scale;
  int32_t* ids;        // [tokens, top_k]
  float* weights;      // [tokens, top_k]
  float* zero_weight;  // [tokens]
  uint8_t* num_real;   // [tokens]
  int32_t* counts;     // [experts], zeroed by the caller
  int32_t* errors;     // [1], counted up
};

// Tokens [begin, end).
void moe_route(const RouteParams& params, int64_t begin, int64_t end);

struct PlaceParams {
  const int32_t* ids;       // [tokens, top_k]
  const int32_t* slots;     // [experts, max_replicas]
  const int32_t* replicas;  // [experts]
  int64_t top_k, experts, max_replicas;
  uint32_t layer;
  int32_t* out;  // [tokens, top_k]
};

// Tokens [begin, end).
void moe_place(const PlaceParams& params, int64_t begin, int64_t end);

struct PlanParams {
  const int32_t* ids;    // [tokens, top_k]
  const float* weights;  // [tokens, top_k], or null; a choice of weight 0 has no row
  int64_t tokens, top_k, num_local, rows;
  int32_t* offsets;  // [num_local + 1]
  int32_t* row_of;   // [tokens, top_k]
  int32_t* src_of;   // [rows]
};

void moe_plan(const PlanParams& params);

struct PermuteParams {
  DType dtype;
  Matrix x;  // [tokens, width], column stride 1
  int64_t tokens, top_k, width;
  const int32_t* src_of;  // [rows]
  Matrix out;             // [rows, width]
};

// Rows of the output [begin, end): those without a token are not written.
void moe_permute(const PermuteParams& params, int64_t begin, int64_t end);

struct CombineParams {
  DType y_dtype, x_dtype;
  Matrix y, x, add, out;  // column stride 1; add.data may be null
  int64_t rows, width, top_k;
  const int32_t* row_of;     // [tokens, top_k]
  const float* weights;      // [tokens, top_k]
  const float* zero_weight;  // [tokens]
};

// Tokens [begin, end).
void moe_combine(const CombineParams& params, int64_t begin, int64_t end);

}  // namespace longcat_ops::cpu
