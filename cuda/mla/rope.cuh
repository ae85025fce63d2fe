// RoPE of pairs of neighbouring elements.
#pragma once

#include "ptx/ptx.cuh"

namespace longcat_ops::mla {

// Turns a pair by an angle, (cos, sin). Two products and a sum, each rounded: the CPU kernels do the same.
LC_DEVICE void turn(const float* pair, const float* angle, float* turned) {
  turned[0] = ptx::add_rn(ptx::multiply_rn(pair[0], angle[0]), -ptx::multiply_rn(pair[1], angle[1]));
  turned[1] = ptx::add_rn(ptx::multiply_rn(pair[0], angle[1]), ptx::multiply_rn(pair[1], angle[0]));
}

}  // namespace longcat_ops::mla
