// CPU kernels that go row by row: embedding, sums, SwiGLU. Free of torch; each works on a range of rows, so that the
// caller owns the threads.
#pragma once

#include "cpu/quant.h"

namespace longcat_ops::cpu {

// out[t] = table[ids[t]]; 0 where the table has no such row.
struct EmbedParams {
  DType dtype;
  Matrix table, out;
  const int64_t* ids;
  int64_t vocabulary, width;
};

// out = silu(gate) * up in float32, rounded once.
struct SiluAndMulParams {
  DType dtype;
  Matrix gate_up, out;  // [rows, 2 * width], [rows, width]
  int64_t width;
};

// Rows [begin, end).
void embed_rows(const EmbedParams& params, int64_t begin, int64_t end);
void silu_and_mul(const SiluAndMulParams& params, int64_t begin, int64_t end);

}  // namespace longcat_ops::cpu
