#include "launch/tensor_map.h"

#include <atomic>
#include <string>

#include "launch/status.h"
#include "longcat_ops.h"

#ifndef LC_EMULATE
#include <cuda.h>
#include <cuda_runtime.h>
#endif

namespace longcat_ops {

ByteTensor normalised(ByteTensor tensor) {
  if (tensor.rows == 1) tensor.row_stride = (tensor.columns + 15) / 16 * 16;
  if (tensor.groups == 1) tensor.group_stride = tensor.rows * tensor.row_stride;
  return tensor;
}

bool can_map(const ByteTensor& tensor) {
  const ByteTensor t = normalised(tensor);
  constexpr int64_t kMaxStride = int64_t{1} << 40;
  return (reinterpret_cast<uintptr_t>(t.data) | t.row_stride | t.group_stride) % 16 == 0 && t.row_stride >= t.columns &&
         t.group_stride >= t.rows * t.row_stride && t.group_stride % t.row_stride == 0 && t.group_stride < kMaxStride;
}

#ifndef LC_EMULATE

namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

Encode find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  constexpr unsigned kVersion = 12000;  // the first with tensor maps
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, kVersion, cudaEnableDefault, &found) !=
          cudaSuccess ||
      found != cudaDriverEntryPointSuccess) {
    cudaGetLastError();
    return nullptr;
  }
  return reinterpret_cast<Encode>(function);
}

}  // namespace

int encode_map(const ByteTensor& tensor, uint32_t box_rows, void* map, uint32_t box_groups) {
  static std::atomic<Encode> known{nullptr};  // a failure may be temporary
  Encode encode = known.load(std::memory_order_relaxed);
  if (encode == nullptr) known.store(encode = find_encode(), std::memory_order_relaxed);
  if (encode == nullptr)
    return set_status(LC_ERR_DRIVER_SYMBOL,
                      "cuTensorMapEncodeTiled was not found: the driver is older than CUDA 12.0, or it failed earlier");
  const ByteTensor t = normalised(tensor);
  const cuuint64_t sizes[] = {static_cast<cuuint64_t>(t.columns), static_cast<cuuint64_t>(t.rows),
                              static_cast<cuuint64_t>(t.groups)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(t.row_stride), static_cast<cuuint64_t>(t.group_stride)};
  const cuuint32_t box[] = {kBoxColumns, box_rows, box_groups}, steps[] = {1, 1, 1};
  const CUresult result =
      encode(static_cast<CUtensorMap*>(map), CU_TENSOR_MAP_DATA_TYPE_UINT8, 3, const_cast<void*>(t.data), sizes,
             strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return LC_OK;
  return set_status(LC_ERR_CUDA, "cuTensorMapEncodeTiled of [" + std::to_string(t.groups) + ", " +
                                     std::to_string(t.rows) + ", " + std::to_string(t.columns) + "] with strides " +
                                     std::to_string(t.group_stride) + ", " + std::to_string(t.row_stride) +
                                     ": CUresult " + std::to_string(result));
}

#endif

}  // namespace longcat_ops
