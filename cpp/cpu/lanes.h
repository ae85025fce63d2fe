// What the CPU kernels share: sums in lanes, and rows of a view.
#pragma once

#include "cpu/float_formats.h"
#include "cpu/quant.h"

namespace longcat_ops::cpu {

constexpr int kLanes = 16;  // of a partial sum: one 512-bit, two 256-bit or four 128-bit registers

LC_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
LC_INLINE T* row_of(const Matrix& matrix, int64_t row) {
  return static_cast<T*>(matrix.data) + row * matrix.row_stride;
}

}  // namespace longcat_ops::cpu
