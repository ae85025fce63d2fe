// A box of a tensor as the copy engine sees it: rows of the fastest dimension, in shared memory one after another.
#pragma once

#include <algorithm>
#include <cstdint>

#include "emu/error.h"
#include "emu/ptx/types.h"

namespace longcat_ops::emu {

// XORs the number of the 16-byte chunk with higher address bits.
inline uint32_t swizzled(uint32_t address, ptx::Swizzle swizzle) {
  constexpr uint32_t kMask[] = {0, 1, 3, 7};
  return address ^ ((address >> 7 & kMask[int(swizzle)]) << 4);
}

struct TensorBox {
  // The part of a row that lies inside the tensor.
  struct Span {
    uint8_t* global;  // its first byte
    uint32_t skip;    // bytes of the row before it
    uint32_t bytes;   // 0: all of the row is outside
  };

  TensorBox(const ptx::TensorMap& map_, const int32_t* coord_) : map(map_) {
    std::copy_n(coord_, map.rank, coord);
    row_bytes = map.box[0] * map.element_size;
    rows = 1;
    for (uint32_t d = 1; d < map.rank; ++d) rows *= map.box[d];
  }

  uint32_t bytes() const { return rows * row_bytes; }

  Span row(uint32_t index) const {
    int64_t offset = 0;
    for (uint32_t d = 1; d < map.rank; ++d) {
      const int64_t at = int64_t(coord[d]) + index % map.box[d];
      index /= map.box[d];
      if (at < 0 || at >= int64_t(map.sizes[d])) return {nullptr, 0, 0};
      offset += at * int64_t(map.strides[d]);
    }
    const int64_t begin = std::max<int64_t>(coord[0], 0);
    const int64_t end = std::min<int64_t>(int64_t(coord[0]) + map.box[0], int64_t(map.sizes[0]));
    if (begin >= end) return {nullptr, 0, 0};
    return {map.base + offset + begin * map.element_size, uint32_t(begin - coord[0]) * map.element_size,
            uint32_t(end - begin) * map.element_size};
  }

  ptx::TensorMap map;
  int32_t coord[5] = {};
  uint32_t row_bytes;
  uint32_t rows;
};

// Throws when the hardware would refuse the map or the address, or when the case is not modelled.
void check_tensor_copy(const ptx::TensorMap& map, uint32_t smem_address, uint32_t rank, const char* operation,
                       const Location& where);

}  // namespace longcat_ops::emu
