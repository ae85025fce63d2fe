// Checks the division of cuda/device/fp8_scale.cuh against IEEE. Prints "ok", or the difference and exits with 1.
#include <cstdint>
#include <cstdio>

#include "device/fp8_scale.cuh"

using namespace longcat_ops::device;

static int side(float quotient, float tie) { return (quotient > tie) - (quotient < tie); }

int main() {
  // The scale of every amax from 1e-4 to inf.
  for (uint32_t amax = kMinAmaxBits; amax <= kInfBits; ++amax) {
    if (float_bits(make_fp8_scale(amax).value) == float_bits(bits_float(amax) / kMaxE4M3)) continue;
    std::printf("amax %a: scale %a\n", bits_float(amax), make_fp8_scale(amax).value);
    return 1;
  }

  // Every significand of a divisor times every e4m3 tie (5 bits), with dividends within 2 ulp of the product. A
  // dividend further off has a quotient more than an ulp from the tie, and the division errs by less.
  for (uint32_t significand = 0; significand < 1u << 23; ++significand) {
    const float divisor = bits_float(0x3f800000u | significand), inverse = 1.0f / divisor;
    for (int sixteenths = 16; sixteenths < 32; ++sixteenths) {
      const float tie = static_cast<float>(sixteenths) / 16.0f;
      const uint32_t centre = float_bits(divisor * tie);
      for (uint32_t bits = centre - 2; bits <= centre + 2; ++bits) {
        const float x = bits_float(bits), quotient = divide_shared(x, divisor, inverse, -inverse);
        if (side(quotient, tie) == side(x / divisor, tie)) continue;
        std::printf("%a / %a near the tie %a: %a\n", x, divisor, tie, quotient);
        return 1;
      }
    }
  }
  std::puts("ok");
  return 0;
}
