// CPU kernels of the bf16 matrix products. Free of torch; each works on a range of tiles, so that the caller owns the
// threads. A row of the result depends only on its row of a and the weight, not on batch, layout or instruction set.
#pragma once

#include "cpu/hidden.h"

namespace longcat_ops::cpu {

// out[i, :] = a[i, :] @ b.T for the rows [row_begin, row_end). Rows of each matrix have a column stride of 1.
struct Bf16GemmParams {
  Matrix a;     // [m, k]
  Matrix b;     // [n, k]
  Matrix out;   // [m, n]
  DType dtype;  // of a and b: bf16 or f32
  DType out_dtype;
  int64_t row_begin, row_end, n, k;  // n and k are multiples of 8
};

constexpr int64_t kBf16GemmTile = 8;        // weight rows per tile
constexpr int64_t kProductsPerElement = 4;  // multiply-adds that take as long as an element of most kernels

// Tiles [begin, end) of n / kBf16GemmTile.
void bf16_gemm_nt(const Bf16GemmParams& params, int64_t begin, int64_t end);

// h = silu(a @ gate.T) * (a @ up.T). gate_up alternates 8 rows of gate and of up: a tile of each.
struct Bf16SwigluParams {
  Matrix a;        // [m, k]
  Matrix gate_up;  // [2 * width, k]
  DType dtype;     // of both: bf16 or f32
  Hidden out;      // e4m3 with scales, or of that dtype
  int64_t row_begin, row_end, k;
};

// Blocks [begin, end) of 128 columns of h.
void bf16_swiglu_gemm_nt(const Bf16SwigluParams& params, int64_t begin, int64_t end);

}  // namespace longcat_ops::cpu
