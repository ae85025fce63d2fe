// Tensor maps. On a GPU the driver, which is not linked, encodes a CUtensorMap; the emulator encodes a type of its own.
#pragma once

#include <cstdint>

namespace longcat_ops {

// Bytes [groups, rows, columns]; strides in bytes.
struct ByteTensor {
  const void* data;
  int64_t groups, rows, columns, group_stride, row_stride;
};

constexpr uint32_t kBoxColumns = 128;

// The same bytes, with valid strides. The stride of a dimension of size 1 is unused, but the driver still validates it.
ByteTensor normalised(ByteTensor tensor);

// Whether TMA accepts it: 16-byte boundaries, and no row or group inside another.
bool can_map(const ByteTensor& tensor);

// Encodes boxes of box_groups x box_rows x kBoxColumns, swizzled by 128 bytes, with zeros out of bounds. `map`: a
// ptx::TensorMap. Returns LC_OK or an error.
int encode_map(const ByteTensor& tensor, uint32_t box_rows, void* map, uint32_t box_groups = 1);

}  // namespace longcat_ops
