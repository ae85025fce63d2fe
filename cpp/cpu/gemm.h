// CPU kernels of the FP8 matrix products. Free of torch; each works on a range of tiles, so that the caller owns the
// threads. A row of the result depends only on its row of a and the weight, not on padding, batch or instruction set.
#pragma once

#include "cpu/hidden.h"

namespace longcat_ops::cpu {

// One FP8 weight [n, k]; s holds a scale per 128 x 128 block.
struct Fp8Weight {
  const uint8_t* data;
  int64_t row_stride;
  Matrix s;
};

// out[i, :] = a[i, :] @ b.T for the rows [row_begin, row_end).
struct Fp8GemmParams {
  Matrix a, sa;  // e4m3 [m, k], f32 [m, ceil(k / 128)]
  Fp8Weight b;
  Matrix out;
  DType out_dtype;
  int64_t row_begin, row_end, n, k;  // n is even
};

constexpr int64_t kGemmTile = 16;  // weight rows per tile

// Tiles [begin, end) of ceil(n / kGemmTile).
void fp8_gemm_nt(const Fp8GemmParams& params, int64_t begin, int64_t end);

// h = silu(a @ gate.T) * (a @ up.T). gate_up alternates 8 rows of gate and of up, its scales 1 row.
struct Fp8SwigluParams {
  Matrix a, sa;
  Fp8Weight gate_up;  // [2 * width, k]
  Hidden out;         // e4m3 with scales, or bf16
  int64_t row_begin, row_end, k;
};

// Blocks [begin, end) of 128 columns of h.
void fp8_swiglu_gemm_nt(const Fp8SwigluParams& params, int64_t begin, int64_t end);

}  // namespace longcat_ops::cpu
