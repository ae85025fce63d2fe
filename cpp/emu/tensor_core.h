// Arithmetic of one wgmma instruction: D (64 x n, row-major) = A (64 x k) * B (n x k)^T (+ D).
#pragma once

#include <cstdint>

#include "emu/world.h"

namespace longcat_ops::emu {

// k = 32
void multiply_e4m3(const uint8_t* a, const uint8_t* b, int n, bool accumulate, float* d, MmaMode mode);
// k = 16
void multiply_bf16(const uint16_t* a, const uint16_t* b, int n, bool accumulate, float* d, MmaMode mode);

}  // namespace longcat_ops::emu
