// Conversions and arithmetic, each rounded once to nearest even, so that plain float code on a CPU gives the same bits.
// A NaN result is the device's, 0x7fffffff, whatever the operands' payloads. Subnormals are kept.
// No "memory" clobber and no volatile: results depend on the operands alone.
#pragma once

#include "ptx/types.cuh"

namespace longcat_ops::ptx {

// a goes to the lowest byte. Values beyond +-448 saturate; every NaN becomes 0x7f.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cvt
LC_DEVICE uint32_t pack_e4m3x4(float a, float b, float c, float d) {
  uint16_t low, high;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(low) : "f"(b), "f"(a));
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(high) : "f"(d), "f"(c));
  return low | static_cast<uint32_t>(high) << 16;
}

// Exact. e4m3 goes through f16, which holds all its values.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cvt
LC_DEVICE void unpack_f16x2(uint32_t v, float& lo, float& hi) {
  asm("{\n"
      ".reg .b16 l, h;\n"
      "mov.b32 {l, h}, %2;\n"
      "cvt.f32.f16 %0, l;\n"
      "cvt.f32.f16 %1, h;\n"
      "}"
      : "=f"(lo), "=f"(hi)
      : "r"(v));
}
LC_DEVICE void unpack_e4m3x4(uint32_t v, float (&out)[4]) {
  uint32_t low, high;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(low) : "h"(static_cast<uint16_t>(v)));
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(high) : "h"(static_cast<uint16_t>(v >> 16)));
  unpack_f16x2(low, out[0], out[1]);
  unpack_f16x2(high, out[2], out[3]);
}

// lo goes to the low half. Overflow gives infinity; every NaN becomes 0x7fff.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#data-movement-and-conversion-instructions-cvt
LC_DEVICE uint32_t pack_bf16x2(float lo, float hi) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}
LC_DEVICE uint32_t pack_f16x2(float lo, float hi) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  return r;
}

// A bf16 is the upper half of a float: moves bits only, NaNs included.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#alternate-floating-point-data-formats
LC_DEVICE void unpack_bf16x2(uint32_t v, float& lo, float& hi) {
  lo = __uint_as_float(v << 16);
  hi = __uint_as_float(v & 0xffff0000);
}

// Intrinsics, which -use_fast_math and contraction leave alone.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#floating-point-instructions-add
// https://docs.nvidia.com/cuda/parallel-thread-execution/#floating-point-instructions-mul
// https://docs.nvidia.com/cuda/parallel-thread-execution/#floating-point-instructions-fma
// https://docs.nvidia.com/cuda/parallel-thread-execution/#floating-point-instructions-div
LC_DEVICE float add_rn(float a, float b) { return __fadd_rn(a, b); }
LC_DEVICE float multiply_rn(float a, float b) { return __fmul_rn(a, b); }
LC_DEVICE float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
LC_DEVICE float divide_rn(float a, float b) { return __fdiv_rn(a, b); }

// 1 / sqrt(x) with two roundings, as on a CPU; the GPU's rsqrt has no CPU counterpart.
// https://docs.nvidia.com/cuda/parallel-thread-execution/#floating-point-instructions-sqrt
LC_DEVICE float reciprocal_sqrt_rn(float x) { return __fdiv_rn(1.0f, __fsqrt_rn(x)); }

}  // namespace longcat_ops::ptx
