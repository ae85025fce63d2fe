// Warpgroup matrix multiply-accumulate: D = A * B (+ D) with fp32 accumulators.
#pragma once

#include "emu/ops.h"
#include "emu/ptx/types.h"

namespace longcat_ops::ptx {

// leading_bytes and stride_bytes: distances between core matrices, see the ISA's "Matrix descriptor".
inline uint64_t make_descriptor(uint32_t addr, uint32_t leading_bytes, uint32_t stride_bytes, Swizzle swizzle) {
  constexpr uint64_t kLayout[] = {0, 3, 2, 1};  // by Swizzle
  auto field = [](uint32_t bytes) { return uint64_t((bytes & 0x3ffff) >> 4); };
  return field(addr) | field(leading_bytes) << 16 | field(stride_bytes) << 32 | kLayout[int(swizzle)] << 62;
}

inline void wgmma_fence(emu::Location where = emu::Location::current()) { emu::wgmma_fence(where); }
inline void wgmma_commit(emu::Location where = emu::Location::current()) { emu::wgmma_commit(where); }
template <int N>
void wgmma_wait(emu::Location where = emu::Location::current()) {
  static_assert(N >= 0 && N <= 7);
  emu::wgmma_wait(N, where);
}
template <int N, int COUNT>
void wgmma_wait_for(float (&)[COUNT], emu::Location where = emu::Location::current()) {
  static_assert(N >= 0 && N <= 7);
  emu::wgmma_wait(N, where);
}

template <int N>
void wgmma_e4m3(float (&acc)[N / 2], uint64_t a, uint64_t b, bool accumulate,
                emu::Location where = emu::Location::current()) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256);
  emu::wgmma({.accumulator = acc, .n = N, .a = a, .b = b, .accumulate = accumulate}, where);
}
template <int N>
void wgmma_e4m3(float (&acc)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate,
                emu::Location where = emu::Location::current()) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256);
  emu::wgmma({.accumulator = acc, .n = N, .a_registers = a, .b = b, .accumulate = accumulate}, where);
}

// TRANS 0: K-major, 1: MN-major.
template <int N, int TRANS_A = 0, int TRANS_B = 0>
void wgmma_bf16(float (&acc)[N / 2], uint64_t a, uint64_t b, bool accumulate,
                emu::Location where = emu::Location::current()) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256);
  emu::wgmma({.accumulator = acc,
              .n = N,
              .bf16 = true,
              .mn_major_a = TRANS_A != 0,
              .mn_major_b = TRANS_B != 0,
              .a = a,
              .b = b,
              .accumulate = accumulate},
             where);
}
template <int N, int TRANS_B = 0>
void wgmma_bf16(float (&acc)[N / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate,
                emu::Location where = emu::Location::current()) {
  static_assert(N % 8 == 0 && N >= 8 && N <= 256);
  emu::wgmma({.accumulator = acc,
              .n = N,
              .bf16 = true,
              .mn_major_b = TRANS_B != 0,
              .a_registers = a,
              .b = b,
              .accumulate = accumulate},
             where);
}

}  // namespace longcat_ops::ptx
