// Chooses an instance of a kernel: turns run-time dtypes, addresses and sizes into template arguments.
#pragma once

#include <string>

#include "common/constants.h"
#include "common/numeric.h"
#include "device/vector_io.cuh"
#include "launch/launch.h"
#include "longcat_ops.h"

namespace longcat_ops {

template <class Visitor>
int visit_format(int32_t dtype, Visitor&& visit) {
  switch (dtype) {
    case LC_F32: return visit(device::Float32());
    case LC_F16: return visit(device::Float16());
    case LC_BF16: return visit(device::BFloat16());
    default: break;
  }
  return set_status(LC_ERR_INVALID, "dtype " + std::to_string(dtype) + ", expected LC_F32, LC_F16 or LC_BF16");
}

inline int64_t element_bytes(int32_t dtype) { return dtype == LC_F32 ? 4 : dtype == LC_E4M3 ? 1 : 2; }

// Whether every row begins on a multiple of `alignment` bytes.
inline bool rows_aligned(const lc_matrix* matrix, int64_t alignment) {
  if (matrix == nullptr) return true;
  const int64_t row_bytes = matrix->rows > 1 ? matrix->row_stride * element_bytes(matrix->dtype) : 0;
  return (static_cast<int64_t>(reinterpret_cast<uintptr_t>(matrix->data)) | row_bytes) % alignment == 0;
}

// Whether every chunk of 8 elements is aligned for one access: to 16 bytes, or to 8 for codes.
inline bool chunks_aligned(const lc_matrix* matrix) {
  return matrix == nullptr || rows_aligned(matrix, matrix->dtype == LC_E4M3 ? 8 : 16);
}

// Whether a launch of this many blocks, with one row per thread, fills the device at 8 blocks of 256 threads per SM. If
// so, several rows per thread keep as many bytes in flight with fewer threads to start. No result depends on it.
inline bool fills_device(int64_t blocks) { return blocks >= 8 * kTypicalSms; }

}  // namespace longcat_ops
