// Tensor maps: a CUtensorMap on a GPU, encoded by the driver without a link to it; in the emulator its own, which it
// encodes itself.
#pragma once

#include <cstdint>

namespace longcat_ops {

// Bytes [groups, rows, columns]; strides in bytes.
struct ByteTensor {
  const void* data;
  int64_t groups, rows, columns, group_stride, row_stride;
};

constexpr uint32_t kBoxColumns = 128;

// The same bytes. The stride of a dimension of size 1 is unused, but the driver still validates it.
ByteTensor normalised(ByteTensor tensor);

// Whether TMA takes it: 16-byte boundaries, and no row or group inside of another.
bool can_map(const ByteTensor& tensor);

// Boxes of 1 x box_rows x kBoxColumns, swizzled by 128 bytes; zeros out of bounds. `map`: a ptx::TensorMap. LC_OK or an
// error.
int encode_map(const ByteTensor& tensor, uint32_t box_rows, void* map);

}  // namespace longcat_ops
