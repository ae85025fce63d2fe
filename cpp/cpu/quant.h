// CPU kernels of the quantisation ops. Free of torch; each works on a range so that the caller owns the threads.
#pragma once

#include <cstdint>

#include "check/tensor_desc.h"

namespace longcat_ops::cpu {

// A 2-D view: row r, column c is data[r * row_stride + c * column_stride], strides in elements.
struct Matrix {
  void* data;
  int64_t row_stride;
  int64_t column_stride;
};

// s[group] = max(amax, 1e-4) / 448, q = e4m3(x / s), one scale per block of rows x columns.
struct QuantParams {
  DType x_dtype;
  Matrix x, q, s;  // x and q have a column stride of 1
  int64_t rows, columns;
  int64_t block_rows, block_columns;
};

// out = q * s in float32, rounded once to the dtype of out.
struct DequantParams {
  DType out_dtype;
  Matrix q, s, out;  // q and out have a column stride of 1
  int64_t rows, columns;
  int64_t block_rows, block_columns;
};

// q, s = silu(gate) * up in float32, quantised in groups of 128 columns.
struct SiluAndMulQuantParams {
  DType dtype;
  Matrix gate_up, q, s;  // gate_up [rows, 2 * width] and q [rows, width] have a column stride of 1
  int64_t width;
};

// Rows [begin, end).
void silu_and_mul_quant_fp8(const SiluAndMulQuantParams& params, int64_t begin, int64_t end);

// Rows of scales [begin, end): block_rows rows of x each.
void quant_fp8(const QuantParams& params, int64_t begin, int64_t end);
// Rows of q [begin, end).
void dequant_fp8(const DequantParams& params, int64_t begin, int64_t end);

}  // namespace longcat_ops::cpu
