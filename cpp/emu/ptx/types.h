// Macros and types of kernels, emulated side.
#pragma once

#include <cstdint>

#include "emu/error.h"
#include "ptx/operands.h"

#define LC_KERNEL inline void
#define LC_DEVICE inline
#define LC_GRID_CONSTANT const
#define LC_LAUNCH_BOUNDS(threads, min_blocks)
#define LC_DEVICE_VARIABLE static
#define LC_UNROLL
#define LC_NO_UNROLL

namespace longcat_ops::ptx {

struct alignas(64) TensorMap {
  uint8_t* base;
  uint32_t rank;
  uint32_t element_size;  // bytes
  uint64_t sizes[5];      // elements, fastest dimension first
  uint64_t strides[5];    // bytes; strides[0] == element_size
  uint32_t box[5];        // elements
  Swizzle swizzle;
};

}  // namespace longcat_ops::ptx
