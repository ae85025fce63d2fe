// The arithmetic of an RMS norm of one row, the same for every kernel that has one.
//
// Order of the sum of squares, which depends on the width alone: in a chunk of 8 ((0+1)+(2+3))+((4+5)+(6+7)), every
// pair one product and one FMA; thread t of n = norm_threads(chunks) adds chunks t, t + n, ... in order; then a
// butterfly over the lanes of each warp, then one over the sums of the warps.
#pragma once

#include "common/norm_threads.h"
#include "device/vector_io.cuh"

namespace longcat_ops::device {

LC_DEVICE float sum_of_squares(const float (&v)[kChunk]) {
  float pair[4];
  LC_UNROLL
  for (int i = 0; i < 4; ++i) pair[i] = ptx::fma_rn(v[2 * i + 1], v[2 * i + 1], ptx::multiply_rn(v[2 * i], v[2 * i]));
  return ptx::add_rn(ptx::add_rn(pair[0], pair[1]), ptx::add_rn(pair[2], pair[3]));
}

template <class Format>
LC_DEVICE Chunk<Format> add_chunks(const Chunk<Format>& a, const Chunk<Format>& b) {
  float sum[kChunk], other[kChunk];
  unpack(a, sum);
  unpack(b, other);
  LC_UNROLL
  for (uint32_t i = 0; i < kChunk; ++i) sum[i] = ptx::add_rn(sum[i], other[i]);
  return pack<Format>(sum);
}

LC_DEVICE float inverse_rms_of(float sum_of_squares, float width, float eps) {
  return ptx::reciprocal_sqrt_rn(ptx::add_rn(ptx::divide_rn(sum_of_squares, width), eps));
}

template <class Format>
LC_DEVICE Chunk<Format> normalise(const Chunk<Format>& input, float inverse_rms, const float (&weight)[kChunk]) {
  float values[kChunk];
  unpack(input, values);
  LC_UNROLL
  for (uint32_t i = 0; i < kChunk; ++i)
    values[i] = ptx::multiply_rn(ptx::multiply_rn(values[i], inverse_rms), weight[i]);
  return pack<Format>(values);
}

}  // namespace longcat_ops::device
