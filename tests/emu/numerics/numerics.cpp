// The tensor core's arithmetic for tests in Python.
#include <cstdint>
#include <cstring>
#include <vector>

#include "emu/tensor_core.h"

// out[m][n] = a[m][k] * b[n][k]^T, in chains of k / 32 instructions; m is a multiple of 64, n at most 256.
extern "C" __attribute__((visibility("default"))) void emu_multiply_e4m3_hopper(const uint8_t* a, const uint8_t* b,
                                                                                int m, int n, int k, float* out) {
  using namespace longcat_ops::emu;
  std::vector<uint8_t> step_a(64 * 32), step_b(n * 32);
  for (int row = 0; row < m; row += 64)
    for (int at = 0; at < k; at += 32) {
      for (int r = 0; r < 64; ++r) std::memcpy(&step_a[r * 32], &a[(row + r) * k + at], 32);
      for (int r = 0; r < n; ++r) std::memcpy(&step_b[r * 32], &b[r * k + at], 32);
      multiply_e4m3(step_a.data(), step_b.data(), n, at > 0, out + row * n, MmaMode::kHopper);
    }
}
