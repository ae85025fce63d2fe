// Compares ptx::exp with double over every STEPth float; prints the largest error in ulp of the result and where.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>

#include "device/math.cuh"

namespace {

using longcat_ops::ptx::exp;

// The spacing of floats at `exact`, subnormals included.
double ulp(double exact) { return std::ldexp(1.0, std::max(std::ilogb(exact), -126) - 23); }

void sweep(float from, float to, uint32_t step) {
  double worst = 0;
  float where = from;
  const uint32_t last = std::bit_cast<uint32_t>(to);
  for (uint32_t bits = std::bit_cast<uint32_t>(from); bits <= last; bits += step) {
    const float x = std::bit_cast<float>(bits);
    const double exact = std::exp(double(x));
    const float actual = exp(x);
    double error = std::abs(double(actual) - exact) / ulp(exact);
    if (!(error <= worst)) worst = error, where = x;
  }
  std::printf("%.9g %.4f\n", where, worst);
}

}  // namespace

int main(int argc, char** argv) {
  const uint32_t step = argc > 1 ? std::atoi(argv[1]) : 1;
  sweep(0.0f, 88.72283f, step);  // the last x whose exponential is finite in float
  sweep(-0.0f, -103.97f, step);  // into the subnormals
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (float x :
       {-103.9721f, -104.0f, -1e30f, -kInfinity, 88.72284f, 89.5f, 1e30f, kInfinity, NAN, -NAN, 0.0f, -0.0f}) {
    std::printf("%08x\n", std::bit_cast<uint32_t>(exp(x)));
  }
}
