// The argument structs of longcat_ops.h, as a launcher receives them.
#pragma once

#include <string>

#include "launch/status.h"
#include "longcat_ops.h"

namespace longcat_ops {

// LC_OK, or an error if the caller was built with another version of the struct.
template <class Args>
int check_args(const char* function, const Args* args) {
  const size_t size = args != nullptr ? args->struct_size : 0;
  if (size == sizeof(Args)) return LC_OK;
  return set_status(LC_ERR_INVALID, std::string(function) + ": struct_size " + std::to_string(size) + ", expected " +
                                        std::to_string(sizeof(Args)) + ": built with another longcat_ops.h");
}

// Null where the matrix is absent.
inline const lc_matrix* given(const lc_matrix& matrix) { return matrix.data != nullptr ? &matrix : nullptr; }

}  // namespace longcat_ops
