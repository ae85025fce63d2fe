// wgmma: operands in every layout, groups, misuse.
#include <cmath>
#include <random>

#include "check.h"

namespace test {

using namespace longcat_ops::ptx;
namespace detail = longcat_ops::ptx::detail;

namespace {

uint32_t swizzle_span(Swizzle swizzle) {
  return swizzle == Swizzle::k128B ? 128 : swizzle == Swizzle::k64B ? 64 : swizzle == Swizzle::k32B ? 32 : 16;
}

// Where the layouts of the ISA put byte `byte` of line `line` of an operand (line: row of M or N when K-major, else k).
// A tile is 8 lines of one span; consecutive spans of a line are `next_span` bytes apart.
uint32_t element_offset(Swizzle swizzle, uint32_t line, uint32_t byte, uint32_t next_span, uint32_t next_lines) {
  const uint32_t span = swizzle_span(swizzle);
  uint32_t address = line / 8 * next_lines + byte / span * next_span + line % 8 * span + byte % span;
  const uint32_t chunks = span / 16;
  return address ^ (address / 128 % chunks) * 16;
}

struct Operand {
  Swizzle swizzle;
  bool mn_major;
  uint32_t rows, k_count;  // of the whole tile in shared memory

  uint32_t line_bytes(uint32_t element) const { return (mn_major ? rows : k_count) * element; }
  uint32_t lines() const { return mn_major ? k_count : rows; }
  uint32_t next_lines() const { return 8 * swizzle_span(swizzle); }
  uint32_t next_span() const { return next_lines() * lines() / 8; }
  uint32_t offset(uint32_t row, uint32_t k, uint32_t element) const {
    const uint32_t line = mn_major ? k : row, byte = (mn_major ? row : k) * element;
    return element_offset(swizzle, line, byte, next_span(), next_lines());
  }
  uint64_t descriptor(uint32_t address) const {
    // NOTE: without swizzle and MN-major, the leading offset goes along k and the stride offset along M or N.
    const bool swap = mn_major && swizzle == Swizzle::kNone;
    return make_descriptor(address, swap ? next_lines() : next_span(), swap ? next_span() : next_lines(), swizzle);
  }
};

struct Form {
  Swizzle a = Swizzle::k128B, b = Swizzle::k128B;
  bool bf16 = false, trans_a = false, trans_b = false, register_a = false;
  uint32_t k_step = 0;  // which K step of the tile
  bool accumulate = true;
};

template <class T>
float decode(T value) {
  return sizeof(T) == 1 ? detail::from_e4m3(value) : detail::from_bf16(value);
}

// Issues the instruction of one form; the primitives take its properties as template parameters.
template <int N>
void issue(const Form& form, float (&acc)[N / 2], const uint32_t (&fragment)[4], uint64_t a, uint64_t b) {
  if (!form.bf16 && form.register_a) return wgmma_e4m3<N>(acc, fragment, b, form.accumulate);
  if (!form.bf16) return wgmma_e4m3<N>(acc, a, b, form.accumulate);
  if (form.register_a) return wgmma_bf16<N>(acc, fragment, b, form.accumulate);
  if (form.trans_a && form.trans_b) return wgmma_bf16<N, 1, 1>(acc, a, b, form.accumulate);
  if (form.trans_a) return wgmma_bf16<N, 1, 0>(acc, a, b, form.accumulate);
  if (form.trans_b) return wgmma_bf16<N, 0, 1>(acc, a, b, form.accumulate);
  wgmma_bf16<N>(acc, a, b, form.accumulate);
}

template <int N, class T>
void check_form(Form form) {
  constexpr uint32_t kElement = sizeof(T), kStep = 32 / kElement;
  form.bf16 = kElement == 2;
  auto tile_k = [&](Swizzle swizzle, bool mn_major) {
    return mn_major ? 4 * kStep : std::max(swizzle_span(swizzle), 32u) / kElement;
  };
  const Operand a{form.a, form.trans_a, 64, tile_k(form.a, form.trans_a)};
  const Operand b{form.b, form.trans_b, N, tile_k(form.b, form.trans_b)};
  std::mt19937 generator(N);
  std::uniform_real_distribution<float> uniform(-2, 2);
  std::vector<T> smem_a(64 * a.k_count), smem_b(N * b.k_count);
  std::vector<float> value_a(64 * kStep), value_b(N * kStep);
  auto fill = [&](const Operand& operand, std::vector<T>& smem, std::vector<float>& values) {
    for (uint32_t row = 0; row < operand.rows; ++row)
      for (uint32_t k = 0; k < operand.k_count; ++k) {
        const float v = uniform(generator);
        const T bits = T(kElement == 1 ? detail::to_e4m3(v) : detail::to_bf16(v));
        smem[operand.offset(row, k, kElement) / kElement] = bits;
        if (k / kStep == form.k_step) values[row * kStep + k % kStep] = decode(bits);
      }
  };
  fill(a, smem_a, value_a);
  fill(b, smem_b, value_b);
  const uint32_t bytes_a = uint32_t((smem_a.size() * kElement + 1023) / 1024 * 1024);
  const uint32_t bytes_b = uint32_t(smem_b.size() * kElement);
  auto step_offset = [&](const Operand& operand) {
    return operand.offset(0, form.k_step * kStep, kElement);  // row 0 of an atom: the swizzle does not move it
  };

  emu::World world(N);
  auto* out = world.alloc_array<float>(64 * N, 0, "out");
  const T *data_a = smem_a.data(), *data_b = smem_b.data();
  const float* rows_a = value_a.data();
  run(world, 1, 128, bytes_a + bytes_b, [=] {
    const uint32_t base = dynamic_smem_base();
    for (uint32_t i = thread_index(); i < 64 * a.k_count; i += 128) store_shared(base + i * kElement, data_a[i]);
    for (uint32_t i = thread_index(); i < N * b.k_count; i += 128)
      store_shared(base + bytes_a + i * kElement, data_b[i]);
    fence_proxy_async_shared();
    sync_threads();
    const uint32_t t = thread_index();
    uint32_t fragment[4];
    for (uint32_t r = 0; r < 4; ++r) {
      const float* from = rows_a + (t / 32 * 16 + t % 32 / 4 + r % 2 * 8) * kStep + r / 2 * (kStep / 2);
      fragment[r] = kElement == 1
                        ? pack_e4m3x4(from[t % 4 * 4], from[t % 4 * 4 + 1], from[t % 4 * 4 + 2], from[t % 4 * 4 + 3])
                        : pack_bf16x2(from[t % 4 * 2], from[t % 4 * 2 + 1]);
    }
    float acc[N / 2];
    for (int i = 0; i < N / 2; ++i) acc[i] = 1.0f;
    wgmma_fence();
    issue<N>(form, acc, fragment, a.descriptor(base + step_offset(a)), b.descriptor(base + bytes_a + step_offset(b)));
    wgmma_commit();
    wgmma_wait_for<0>(acc);
    for (uint32_t i = 0; i < N / 2; ++i) {
      const uint32_t row = 16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (t % 4) + i % 2;
      store_global(out + row * N + column, acc[i]);
    }
  });
  for (uint32_t row = 0; row < 64; ++row)
    for (uint32_t column = 0; column < N; ++column) {
      double expected = form.accumulate ? 1.0 : 0.0;
      for (uint32_t k = 0; k < kStep; ++k) expected += double(value_a[row * kStep + k]) * value_b[column * kStep + k];
      CHECK_EQ(out[row * N + column], float(expected));
    }
}

constexpr Swizzle kSwizzles[] = {Swizzle::kNone, Swizzle::k32B, Swizzle::k64B, Swizzle::k128B};

}  // namespace

TEST(wgmma_e4m3_swizzles_and_k_steps) {
  for (const Swizzle swizzle : kSwizzles)
    for (uint32_t step = 0; step < std::max(swizzle_span(swizzle), 32u) / 32; ++step)
      check_form<16, uint8_t>({.a = swizzle, .b = swizzle, .k_step = step});
}

TEST(wgmma_e4m3_shapes) {
  check_form<8, uint8_t>({.accumulate = false});
  check_form<24, uint8_t>({});
  check_form<128, uint8_t>({.accumulate = false});
  check_form<256, uint8_t>({});
}

TEST(wgmma_a_from_registers) {
  check_form<16, uint8_t>({.register_a = true});
  check_form<16, uint16_t>({.register_a = true});
}

TEST(wgmma_bf16_k_major) {
  for (const Swizzle swizzle : kSwizzles) check_form<16, uint16_t>({.a = swizzle, .b = swizzle});
  check_form<64, uint16_t>({.k_step = 3});
}

TEST(wgmma_bf16_mn_major) {
  for (const Swizzle swizzle : kSwizzles) {
    check_form<64, uint16_t>({.a = swizzle, .b = swizzle, .trans_a = true, .trans_b = true});
    check_form<64, uint16_t>({.a = swizzle, .b = swizzle, .trans_a = true});
    check_form<128, uint16_t>({.b = swizzle, .trans_b = true, .k_step = 1});
  }
}

namespace {

// A and B all zero, K-major without swizzle.
template <class Body>
void with_operands(Body body) {
  for (const emu::Policy policy : kPolicies) {
    emu::World world(3, policy);
    run(world, 1, 128, 4096, [=] {
      const uint32_t base = dynamic_smem_base();
      for (uint32_t i = thread_index(); i < 256; i += 128) store_shared(base + 16 * i, Vec16{});
      fence_proxy_async_shared();
      sync_threads();
      const uint64_t descriptor = make_descriptor(base, 2048, 128, Swizzle::kNone);
      body(base, descriptor);
    });
  }
}

}  // namespace

TEST(wgmma_two_groups_in_flight) {
  with_operands([](uint32_t, uint64_t d) {
    float x[4], y[4];
    wgmma_fence();
    wgmma_e4m3<8>(x, d, d, false);
    wgmma_commit();
    wgmma_e4m3<8>(y, d, d, false);
    wgmma_commit();
    wgmma_wait<1>();
    x[0] += 1;
    wgmma_wait<0>();
    y[0] += 1;
    if (x[0] != 1 || y[0] != 1) throw std::runtime_error("wrong value");
  });
  CHECK_ERROR("wgmma", with_operands([](uint32_t, uint64_t d) {
                float x[4], y[4];
                wgmma_fence();
                wgmma_e4m3<8>(x, d, d, false);
                wgmma_commit();
                wgmma_e4m3<8>(y, d, d, false);
                wgmma_commit();
                wgmma_wait<1>();
                y[0] += 1;
                wgmma_wait<0>();
              }));
}

TEST(wgmma_misuse) {
  CHECK_ERROR("wgmma", with_operands([](uint32_t, uint64_t d) {
                float acc[4];
                uint32_t a[4] = {};
                wgmma_fence();
                wgmma_e4m3<8>(acc, a, d, false);
                wgmma_commit();
                a[1] = 1;
                wgmma_wait<0>();
              }));
  CHECK_ERROR("wgmma-fence", with_operands([](uint32_t, uint64_t d) {
                float acc[4];
                for (int i = 0; i < 2; ++i) {
                  if (i == 0) wgmma_fence();
                  wgmma_e4m3<8>(acc, d, d, false);
                  wgmma_commit();
                  wgmma_wait<0>();
                }
              }));
  CHECK_ERROR("descriptor", with_operands([](uint32_t base, uint64_t) {
                float acc[4];
                const uint64_t bad = make_descriptor(base + 128, 16, 1024, Swizzle::k128B);
                wgmma_fence();
                wgmma_e4m3<8>(acc, bad, bad, false);
                wgmma_commit();
                wgmma_wait<0>();
              }));
  CHECK_ERROR("divergent", with_operands([](uint32_t, uint64_t d) {
                float acc[4];
                wgmma_fence();
                wgmma_e4m3<8>(acc, d, d, thread_index() == 9);
                wgmma_commit();
                wgmma_wait<0>();
              }));
  // The writes of other lanes of the warp are not ordered before the unit's reads without a barrier.
  CHECK_ERROR("race", run(1, 128, 4096, [] {
                const uint32_t base = dynamic_smem_base();
                for (uint32_t i = thread_index(); i < 256; i += 128) store_shared(base + 16 * i, Vec16{});
                fence_proxy_async_shared();
                float acc[4];
                const uint64_t d = make_descriptor(base, 2048, 128, Swizzle::kNone);
                wgmma_fence();
                wgmma_e4m3<8>(acc, d, d, false);
                wgmma_commit();
                wgmma_wait<0>();
              }));
}

}  // namespace test
