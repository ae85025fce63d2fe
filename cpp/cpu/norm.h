// CPU kernel of rms_norm. Free of torch; works on a range of rows so that the caller owns the threads.
#pragma once

#include "cpu/quant.h"

namespace longcat_ops::cpu {

// y = x / sqrt(mean(x^2) + eps) * weight in float32, rounded once to the dtype of x.
struct RmsNormParams {
  DType dtype;
  Matrix x, y;  // column stride 1
  const float* weight;
  int64_t columns;
  float eps;
};

// out = a + b in float32, rounded once to their dtype.
struct AddParams {
  DType dtype;
  Matrix a, b, out;  // column stride 1
  int64_t columns;
};

// Rows [begin, end).
void add(const AddParams& params, int64_t begin, int64_t end);

// Rows [begin, end).
void rms_norm(const RmsNormParams& params, int64_t begin, int64_t end);

}  // namespace longcat_ops::cpu
