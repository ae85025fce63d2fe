// What the products with SwiGLU store: h = silu(gate) * up, as float32 values of up to 128 channels of some rows.
#pragma once

#include "cpu/quant.h"

namespace longcat_ops::cpu {

struct Hidden {
  Matrix h;  // [m, width], a column stride of 1
  DType dtype;
  Matrix sh;  // f32 [m, ceil(width / 128)] if h is e4m3, else without data
  int64_t width;

  // Channels of block b of 128.
  int64_t channels(int64_t block) const;
  // values [rows, kQuantBlock]: rows `row` .. of block b. Quantises them 1x128, or rounds each once.
  void store(const float* values, int64_t row, int64_t rows, int64_t block) const;
};

}  // namespace longcat_ops::cpu
