// The arithmetic of an RMS norm of one row, the same for every kernel that has one.
//
// Order of the sum of squares, which depends on the width alone: in a chunk of 8 ((0+1)+(2+3))+((4+5)+(6+7)), every
// pair one product and one FMA; thread t of n = norm_threads(chunks) adds chunks t, t + n, ... in order; then a
// butterfly over the lanes of each warp, then one over the sums of the warps.
#pragma once

#include "common/numeric.h"
#include "device/vector_io.cuh"

namespace longcat_ops::quant {

constexpr int kNormMaxThreads = 256;

// Threads that a row takes.
constexpr uint32_t norm_threads(uint32_t chunks) {
  const auto threads = static_cast<uint32_t>(align_up(chunks, 32));
  return threads < kNormMaxThreads ? threads : kNormMaxThreads;
}

LC_DEVICE float sum_of_squares(const float (&v)[device::kChunk]) {
  float pair[4];
  LC_UNROLL
  for (int i = 0; i < 4; ++i) pair[i] = ptx::fma_rn(v[2 * i + 1], v[2 * i + 1], ptx::multiply_rn(v[2 * i], v[2 * i]));
  return ptx::add_rn(ptx::add_rn(pair[0], pair[1]), ptx::add_rn(pair[2], pair[3]));
}

template <class Format>
LC_DEVICE device::Chunk<Format> add_chunks(const device::Chunk<Format>& a, const device::Chunk<Format>& b) {
  float sum[device::kChunk], other[device::kChunk];
  unpack(a, sum);
  unpack(b, other);
  LC_UNROLL
  for (uint32_t i = 0; i < device::kChunk; ++i) sum[i] = ptx::add_rn(sum[i], other[i]);
  return device::pack<Format>(sum);
}

LC_DEVICE float inverse_rms_of(float sum_of_squares, float width, float eps) {
  return ptx::reciprocal_sqrt_rn(ptx::add_rn(ptx::divide_rn(sum_of_squares, width), eps));
}

template <class Format>
LC_DEVICE device::Chunk<Format> normalise(const device::Chunk<Format>& input, float inverse_rms,
                                          const float (&weight)[device::kChunk]) {
  float values[device::kChunk];
  unpack(input, values);
  LC_UNROLL
  for (uint32_t i = 0; i < device::kChunk; ++i)
    values[i] = ptx::multiply_rn(ptx::multiply_rn(values[i], inverse_rms), weight[i]);
  return device::pack<Format>(values);
}

}  // namespace longcat_ops::quant
