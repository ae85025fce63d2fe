// What the launcher hands to the kernel.
#pragma once

#include <cstdint>

#include "gemm/layout.h"
#include "ptx/ptx.cuh"

namespace longcat_ops::moe_gemm {

// How rows of activations belong to groups, and what `index` holds.
enum class RowLayout : uint32_t {
  kDense,       // one group has all rows
  kOffset,      // i32 [groups + 1]: first row of each group, and the end of the last
  kMasked,      // i32 [groups]: group g uses the first index[g] rows of a matrix of its own
  kContiguous,  // i32 [rows]: the group of each row; outside of 0 .. groups - 1 the row has none
};

struct GroupedRows {
  RowLayout layout;
  uint32_t groups, rows;  // rows: of a matrix of activations
  const int32_t* index;
};

// Matrices [groups][rows][columns]; strides in elements. One matrix for all groups has a group stride of 0.
template <class T>
struct Stack {
  T* data;
  int64_t group_stride, row_stride, column_stride;

  LC_DEVICE T* at(uint32_t group, uint32_t row) const { return data + group * group_stride + row * row_stride; }
};

enum class OutputType : uint32_t { kFloat32, kFloat16, kBFloat16 };

struct MoeGemmParams {
  ptx::TensorMap weight_map;            // bytes [groups, n, k], box 1 x tile_rows x 128
  ptx::TensorMap token_map[3];          // bytes [groups or 1, rows, k], boxes of 8, 32 and 128 rows
  Stack<const uint8_t> weight, tokens;  // the same, used if no map can describe them
  Stack<const float> weight_scale;      // FP8: [groups, ceil(n / 128), ceil(k / 128)]
  Stack<const float> token_scale;       // FP8: [groups or 1, rows, ceil(k / 128)]
  Stack<void> output;                   // [groups or 1, rows, n]
  OutputType output_type;
  bool bulk_output;   // bf16 with rows on 16-byte boundaries
  bool counts_ready;  // rows.index and the weights were written before the kernel ahead began
  GroupedRows rows;
  uint32_t n, k;   // k: bytes of a row of operands
  uint32_t split;  // pieces of K, one for each block of a cluster
  SmemLayout smem;
};

}  // namespace longcat_ops::moe_gemm
