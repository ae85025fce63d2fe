// Threads that an RMS norm gives a row: they decide the order of its sum of squares (device/norm_row.cuh).
#pragma once

#include <cstdint>

namespace longcat_ops::device {

constexpr int kNormMaxThreads = 256;

// chunks: of 8 elements.
constexpr uint32_t norm_threads(uint32_t chunks) {
  const uint32_t threads = (chunks + 31) / 32 * 32;
  return threads < kNormMaxThreads ? threads : kNormMaxThreads;
}

}  // namespace longcat_ops::device
