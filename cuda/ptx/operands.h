// Operands of the wrappers, the same on a GPU and in the emulator.
#pragma once

#include <cstdint>

namespace longcat_ops::ptx {

// What one 16-byte or 8-byte access moves.
struct alignas(16) Vec16 {
  uint32_t x, y, z, w;
};
struct alignas(8) Vec8 {
  uint32_t x, y;
};
// 16 bytes in registers of floats. NOTE: where sums of wgmma go to memory as integers, the compiler keeps them as
// integers everywhere, and moves them in front of each product.
struct alignas(16) Float4 {
  float x, y, z, w;
};
static_assert(sizeof(Vec16) == 16 && sizeof(Vec8) == 8 && sizeof(Float4) == 16);

// Layout of a tile in shared memory, the same for TMA and wgmma: 16-byte chunks are XORed with higher address bits.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#tensor-swizzling-modes
enum class Swizzle { kNone, k32B, k64B, k128B };

// Elements of multimem reductions. bf16 and f16 come in pairs and are summed in fp32.
enum class MultimemType { kF32, kBF16, kF16 };

}  // namespace longcat_ops::ptx
