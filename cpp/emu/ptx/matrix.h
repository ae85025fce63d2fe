// ldmatrix and stmatrix of 8x8 matrices of 16-bit elements. Lanes 8i..8i+7 give the rows of matrix i.
#pragma once

#include "emu/ops.h"
#include "emu/ptx/types.h"

namespace longcat_ops::ptx {

template <int X, bool TRANS>
void load_matrix(uint32_t (&r)[X], uint32_t row_addr, emu::Location where = emu::Location::current()) {
  static_assert(X == 1 || X == 2 || X == 4);
  emu::load_matrix(r, X, TRANS, row_addr, where);
}
template <int X, bool TRANS>
void store_matrix(uint32_t row_addr, const uint32_t (&r)[X], emu::Location where = emu::Location::current()) {
  static_assert(X == 1 || X == 2 || X == 4);
  emu::store_matrix(r, X, TRANS, row_addr, where);
}

}  // namespace longcat_ops::ptx
