// Granularity of an FP8 tensor's scales.
#pragma once

#include "check/tensor_desc.h"
#include "common/numeric.h"

namespace longcat_ops {

// dequant_fp8 tells its two granularities apart by the shape of s: [N, ceil(K / group_size)] is one row of scales per
// row of q, any other is per 128 x 128 block. N equals ceil(N / 128) only for 0 and 1, where both readings agree.
inline bool scales_are_per_row(const TensorDesc& q, const TensorDesc& s, int64_t group_size) {
  return s.sizes[0] == q.sizes[0] && s.sizes[1] == ceil_div(q.sizes[1], group_size);
}

}  // namespace longcat_ops
