// ldmatrix and stmatrix, conversions.
#include <cmath>
#include <limits>
#include <random>

#include "check.h"

namespace test {

using namespace longcat_ops::ptx;
namespace detail = longcat_ops::ptx::detail;

namespace {

// Stores fragments with store_matrix, then compares bytes; loads them back with load_matrix.
template <int X, bool TRANS>
void check_matrices() {
  emu::World world(1);
  run(world, 1, 32, 1024, [] {
    const uint32_t base = dynamic_smem_base(), lane = lane_index();
    // Element (row, column) of matrix m is 100 m + 10 row + column.
    uint32_t r[X], back[X];
    for (uint32_t m = 0; m < X; ++m) {
      const uint32_t first = 100 * m + 10 * (lane / 4) + 2 * (lane % 4);
      r[m] = first | (first + 1) << 16;
    }
    store_matrix<X, TRANS>(base + 16 * (lane % (8 * X)), r);
    warp_sync();
    for (uint32_t i = lane; i < 64 * X; i += 32) {
      const uint32_t m = i / 64, row = i / 8 % 8, column = i % 8;
      const uint32_t expected = 100 * m + (TRANS ? 10 * column + row : 10 * row + column);
      if (load_shared<uint16_t>(base + 2 * i) != expected) throw std::runtime_error("wrong element");
    }
    load_matrix<X, TRANS>(back, base + 16 * (lane % (8 * X)));
    for (int m = 0; m < X; ++m)
      if (back[m] != r[m]) throw std::runtime_error("ldmatrix is not the inverse of stmatrix");
  });
}

}  // namespace

TEST(load_and_store_matrix) {
  check_matrices<1, false>();
  check_matrices<2, false>();
  check_matrices<4, false>();
  check_matrices<1, true>();
  check_matrices<2, true>();
  check_matrices<4, true>();
  CHECK_ERROR("misaligned", run(1, 32, 1024, [] { store_matrix<1, false>(dynamic_smem_base() + 8, {0u}); }));
}

namespace {

// Nearest value of a format, found by searching all its values; ties go to the even code.
uint32_t nearest(float v, uint32_t codes, float (*value_of)(uint32_t)) {
  uint32_t best = 0;
  double distance = std::numeric_limits<double>::infinity();
  for (uint32_t code = 0; code < codes; ++code) {
    const double value = value_of(code);
    if (!std::isfinite(value)) continue;
    const double d = std::fabs(double(std::fabs(v)) - value);
    if (d < distance || (d == distance && code % 2 == 0)) {
      best = code;
      distance = d;
    }
  }
  return best;
}

}  // namespace

TEST(conversions) {
  std::mt19937 generator(3);
  auto random_float = [&] { return std::bit_cast<float>(uint32_t(generator())); };
  for (int i = 0; i < 20000; ++i) {
    float v = random_float();
    if (!std::isfinite(v)) continue;
    int exponent;
    if (i % 2) v = std::ldexp(std::frexp(v, &exponent), int(generator() % 24) - 14);
    const uint32_t sign = std::signbit(v) ? 0x80u : 0u;
    CHECK_EQ(detail::to_e4m3(v), (sign | nearest(v, 0x7f, detail::from_e4m3)));
    CHECK_EQ(detail::from_f16(detail::to_f16(v)), float(_Float16(v)));
  }
  CHECK_EQ(pack_e4m3x4(1.0f, -1.0f, 1e9f, NAN), 0x7f7eb838u);
  CHECK_EQ(pack_e4m3x4(448.0f, -INFINITY, 0.0f, 0.0f), 0xfe7eu);
  CHECK_EQ(pack_bf16x2(1.0f, NAN), 0x7fff3f80u);
  CHECK_EQ(pack_bf16x2(std::bit_cast<float>(0x3f808000u), std::bit_cast<float>(0x3f818000u)), 0x3f823f80u);
  CHECK_EQ(pack_f16x2(65519.0f, 65520.0f), 0x7c007bffu);
  float four[4], lo, hi;
  unpack_e4m3x4(0x7f01b838u, four);
  CHECK(four[0] == 1 && four[1] == -1 && four[2] == 0x1p-9f && std::isnan(four[3]));
  unpack_bf16x2(0x40003f80u, lo, hi);
  CHECK(lo == 1 && hi == 2);
  unpack_f16x2(0xc0003c00u, lo, hi);
  CHECK(lo == 1 && hi == -2);
  CHECK_EQ(std::bit_cast<uint32_t>(divide_rn(0.0f, 0.0f)), 0x7fffffffu);
  CHECK_EQ(fma_rn(0x1.000002p0f, 0x1.000002p0f, -0x1.000004p0f), 0x1p-46f);
  CHECK_EQ(reciprocal_sqrt_rn(4.0f), 0.5f);
}

}  // namespace test
