// Runs the GEMM kernel on random data and compares it with double precision.
#pragma once

#include <cmath>
#include <ctime>
#include <random>
#include <vector>

#include "check.h"
#include "gemm_kernel.h"

namespace test {

struct GemmShape {
  uint32_t tokens = 40, weight_rows = 256, k = 1024, ctas = 2;
};
struct GemmResult {
  double relative_error = 0;
  long wrong = 0;
  emu::Stats stats;
  double cpu_ms = 0;  // of the launch
};

inline double cpu_milliseconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return double(now.tv_sec) * 1e3 + double(now.tv_nsec) * 1e-6;
}

struct GemmData {
  GemmData(emu::World& world, GemmShape shape_, uint32_t n);
  GemmResult compare() const;

  GemmShape shape;
  GemmParams params;
  uint8_t *weight, *x;
  uint16_t* out;
  float *weight_scale, *x_scale;
};

template <int N, Bug BUG>
GemmResult gemm(uint64_t seed, emu::Policy policy, emu::Settings settings = {}, GemmShape shape = {}) {
  emu::World world(seed, policy, settings);
  GemmData data(world, shape, N);
  const GemmParams params = data.params;
  world.launch({.grid = shape.ctas,
                .block = 384,
                .smem_bytes = GemmLayout<N>::kBytes,
                .registers_per_thread = 168,
                .body = [params] { gemm_kernel<N, BUG>(params); },
                .name = "gemm"});
  const double begin = cpu_milliseconds();
  world.synchronize();
  const double cpu_ms = cpu_milliseconds() - begin;
  GemmResult result = data.compare();
  result.stats = world.stats();
  result.cpu_ms = cpu_ms;
  return result;
}

}  // namespace test
