// Replaces the emulator's header with the few names that device/math.cuh needs, in plain C++.
#pragma once

#include <cmath>

#define LC_DEVICE inline

namespace longcat_ops::ptx {

inline float add_rn(float a, float b) { return a + b; }
inline float multiply_rn(float a, float b) { return a * b; }
inline float fma_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float divide_rn(float a, float b) { return a / b; }

}  // namespace longcat_ops::ptx
