// What the CPU kernels of the matrix products share: sums in lanes, and rows of a view.
#pragma once

#include "cpu/float_formats.h"
#include "cpu/quant.h"

namespace longcat_ops::cpu {

constexpr int kLanes = 16;  // per partial sum: one 512-bit, two 256-bit or four 128-bit registers

// A GCC and Clang vector, which they split if the target's are narrower.
using Floats = float __attribute__((vector_size(4 * kLanes)));

LC_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class T>
LC_INLINE T* row_of(const Matrix& matrix, int64_t row) {
  return static_cast<T*>(matrix.data) + row * matrix.row_stride;
}

}  // namespace longcat_ops::cpu
