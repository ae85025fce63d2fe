// Runs the GEMM kernel on random data and compares it with double precision.
#pragma once

#include <cmath>
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
};

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
  world.synchronize();
  GemmResult result = data.compare();
  result.stats = world.stats();
  return result;
}

}  // namespace test
