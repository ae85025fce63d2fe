#include "gemm.h"

namespace test {

namespace detail = longcat_ops::ptx::detail;

GemmData::GemmData(emu::World& world, GemmShape shape_, uint32_t n) : shape(shape_) {
  const uint32_t padded = (shape.tokens + n - 1) / n * n, blocks = shape.k / 128;
  weight = world.alloc_array<uint8_t>(size_t(shape.weight_rows) * shape.k, 0, "weight", true);
  x = world.alloc_array<uint8_t>(size_t(shape.tokens) * shape.k, 0, "x", true);
  out = world.alloc_array<uint16_t>(size_t(shape.tokens) * shape.weight_rows, 0, "out");
  weight_scale = world.alloc_array<float>(shape.weight_rows / 128 * blocks, 0, "weight_scale", true);
  x_scale = world.alloc_array<float>(blocks * padded, 0, "x_scale", true);
  std::mt19937 generator(7);
  std::normal_distribution<float> normal(0, 100);
  std::uniform_real_distribution<float> uniform(0.005f, 0.015f);
  for (size_t i = 0; i < size_t(shape.weight_rows) * shape.k; ++i) weight[i] = detail::to_e4m3(normal(generator));
  for (size_t i = 0; i < size_t(shape.tokens) * shape.k; ++i) x[i] = detail::to_e4m3(normal(generator));
  for (uint32_t i = 0; i < shape.weight_rows / 128 * blocks; ++i) weight_scale[i] = uniform(generator);
  for (uint32_t i = 0; i < blocks * padded; ++i) x_scale[i] = uniform(generator);
  params.weight = {weight, 2, 1, {shape.k, shape.weight_rows}, {1, shape.k}, {128, 128}, Swizzle::k128B};
  params.x = {x, 2, 1, {shape.k, shape.tokens}, {1, shape.k}, {128, n}, Swizzle::k128B};
  params.out = {reinterpret_cast<uint8_t*>(out),
                2,
                2,
                {shape.weight_rows, shape.tokens},
                {2, shape.weight_rows * 2},
                {64, n},
                Swizzle::k128B};
  params.weight_scale = weight_scale;
  params.x_scale = x_scale;
  params.tokens = shape.tokens;
  params.padded_tokens = padded;
  params.weight_rows = shape.weight_rows;
  params.k = shape.k;
}

GemmResult GemmData::compare() const {
  float value[256];
  for (uint32_t i = 0; i < 256; ++i) value[i] = detail::from_e4m3(i);
  const uint32_t blocks = shape.k / 128;
  GemmResult result;
  double error = 0, norm = 0;
  for (uint32_t t = 0; t < shape.tokens; ++t)
    for (uint32_t r = 0; r < shape.weight_rows; ++r) {
      double expected = 0;
      for (uint32_t b = 0; b < blocks; ++b) {
        double part = 0;
        for (uint32_t k = b * 128; k < (b + 1) * 128; ++k)
          part += double(value[x[size_t(t) * shape.k + k]]) * value[weight[size_t(r) * shape.k + k]];
        expected += part * x_scale[b * params.padded_tokens + t] * weight_scale[r / 128 * blocks + b];
      }
      const double got = detail::from_bf16(out[size_t(t) * shape.weight_rows + r]);
      if (!(std::fabs(got - expected) <= 0.01 * std::fabs(expected) + 0.05)) ++result.wrong;
      error += (got - expected) * (got - expected);
      norm += expected * expected;
    }
  result.relative_error = std::sqrt(error / norm);
  return result;
}

}  // namespace test
