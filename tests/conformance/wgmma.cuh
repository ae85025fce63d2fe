// wgmma: the layout of operands in shared memory and registers, and of the accumulators.
#pragma once

#include <algorithm>
#include <tuple>

#include "convert.cuh"

namespace longcat_ops::conformance {

enum class Kind {
  kE4m3,
  kE4m3FragmentA,
  kBf16,
  kBf16TransA,
  kBf16TransB,
  kBf16TransAB,
  kBf16FragmentA,
  kBf16FragmentATransB
};

constexpr bool is_e4m3(Kind kind) { return kind == Kind::kE4m3 || kind == Kind::kE4m3FragmentA; }
constexpr bool has_fragment(Kind kind) {
  return kind == Kind::kE4m3FragmentA || kind == Kind::kBf16FragmentA || kind == Kind::kBf16FragmentATransB;
}
constexpr bool has_trans_a(Kind kind) { return kind == Kind::kBf16TransA || kind == Kind::kBf16TransAB; }
constexpr bool has_trans_b(Kind kind) {
  return kind == Kind::kBf16TransB || kind == Kind::kBf16TransAB || kind == Kind::kBf16FragmentATransB;
}

template <Kind KIND, int N>
LC_DEVICE void multiply(float (&acc)[N / 2], const uint32_t (&fragment)[4], uint64_t a, uint64_t b, bool accumulate) {
  if constexpr (KIND == Kind::kE4m3) ptx::wgmma_e4m3<N>(acc, a, b, accumulate);
  if constexpr (KIND == Kind::kE4m3FragmentA) ptx::wgmma_e4m3<N>(acc, fragment, b, accumulate);
  if constexpr (KIND == Kind::kBf16FragmentA) ptx::wgmma_bf16<N>(acc, fragment, b, accumulate);
  if constexpr (KIND == Kind::kBf16FragmentATransB) ptx::wgmma_bf16<N, 1>(acc, fragment, b, accumulate);
  if constexpr (!is_e4m3(KIND) && !has_fragment(KIND))
    ptx::wgmma_bf16<N, has_trans_a(KIND), has_trans_b(KIND)>(acc, a, b, accumulate);
}

struct OperandPlace {                                    // in shared memory
  uint32_t at, leading_bytes, stride_bytes, step_bytes;  // step: from one product's K slice to the next
  ptx::Swizzle swizzle;
};

// `steps` consecutive products; the first adds to `initial` [128][N / 2] if it is given. image: all of shared memory.
struct ProductParams {
  const uint32_t* image;
  uint32_t words;
  OperandPlace a, b;
  const uint32_t* fragments;  // [steps][128][4]
  const float* initial;
  uint32_t steps;
  float* out;  // [128][N / 2], thread by thread, in the order of its registers
};

template <Kind KIND, int N>
LC_KERNEL LC_LAUNCH_BOUNDS(128, 1) product_kernel(LC_GRID_CONSTANT ProductParams p) {
  const uint32_t base = ptx::dynamic_smem_base(), t = ptx::thread_index();
  for (uint32_t i = t; i < p.words; i += 128) ptx::store_shared(base + 4 * i, ptx::load_global(p.image + i));
  ptx::fence_proxy_async_shared();
  ptx::sync_threads();
  float acc[N / 2];
  LC_UNROLL
  for (uint32_t i = 0; i < N / 2; ++i)
    acc[i] = p.initial != nullptr ? ptx::load_global(p.initial + t * (N / 2) + i) : -1.0f;
  for (uint32_t step = 0; step < p.steps; ++step) {
    uint32_t fragment[4] = {};
    if (has_fragment(KIND)) {
      LC_UNROLL
      for (uint32_t i = 0; i < 4; ++i) fragment[i] = ptx::load_global(p.fragments + (128 * step + t) * 4 + i);
    }
    const uint64_t a =
        ptx::make_descriptor(base + p.a.at + step * p.a.step_bytes, p.a.leading_bytes, p.a.stride_bytes, p.a.swizzle);
    const uint64_t b =
        ptx::make_descriptor(base + p.b.at + step * p.b.step_bytes, p.b.leading_bytes, p.b.stride_bytes, p.b.swizzle);
    ptx::wgmma_fence();
    multiply<KIND, N>(acc, fragment, a, b, step > 0 || p.initial != nullptr);
    ptx::wgmma_commit();
    ptx::wgmma_wait_for<0>(acc);
  }
  LC_UNROLL
  for (uint32_t i = 0; i < N / 2; ++i) ptx::store_global(p.out + t * (N / 2) + i, acc[i]);
}

// ISA, "Shared memory matrix layout": an operand is a stack of lines (rows of M or N when K-major, else values of k),
// cut into spans of the swizzle's width (16 bytes without one). 8 lines of one span are contiguous, and the swizzle
// XORs within them. Groups of 8 lines follow each other; the next span begins after all lines of this one.
struct Layout {
  ptx::Swizzle swizzle;
  bool mn_major;
  uint32_t rows, k_count, element;  // element: bytes

  uint32_t span() const { return 16u << static_cast<int>(swizzle); }
  uint32_t lines() const { return mn_major ? k_count : rows; }
  uint32_t next_lines() const { return 8 * span(); }
  uint32_t next_span() const { return span() * lines(); }
  uint32_t bytes() const { return rows * k_count * element; }
  uint32_t offset(uint32_t row, uint32_t k) const {
    const uint32_t line = mn_major ? k : row, byte = (mn_major ? row : k) * element;
    const uint32_t plain = byte / span() * next_span() + line * span() + byte % span();
    return plain ^ plain / 128 % (span() / 16) * 16;
  }
  // Offset of the K slice that starts at value `k`: in row 0, whose chunks the swizzle does not move.
  uint32_t slice_at(uint32_t k) const { return offset(0, k); }
  OperandPlace place(uint32_t at, uint32_t slice) const {
    // NOTE: MN-major without swizzle, the leading offset goes along k and the stride offset along M or N.
    const bool swap = mn_major && swizzle == ptx::Swizzle::kNone;
    return {at, swap ? next_lines() : next_span(), swap ? next_span() : next_lines(), slice, swizzle};
  }
};

// Values of an operand [rows][k_count], as codes of its type.
using Codes = std::vector<uint16_t>;

inline double decode(uint16_t code, bool e4m3) {
  if (!e4m3) return bits_float(static_cast<uint32_t>(code) << 16);
  const double value = e4m3_value(code & 0x7f);
  return code & 0x80 ? -value : value;
}

// ISA, wgmma: register i of thread t holds row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4) +
// i % 2.
inline std::pair<uint32_t, uint32_t> accumulator_at(uint32_t t, uint32_t i) {
  return {16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (t % 4) + i % 2};
}

// A's fragment: register r of thread t holds row 16 (t / 32) + t % 32 / 4 + 8 (r % 2) and, of each half slice r / 2,
// the four bytes from 4 (t % 4) on.
inline std::vector<uint32_t> fragments_of(const Codes& a, uint32_t k_count, bool e4m3) {
  const uint32_t slice = e4m3 ? 32 : 16, element = e4m3 ? 1 : 2;
  std::vector<uint32_t> words;
  for (uint32_t step = 0; step < k_count / slice; ++step)
    for (uint32_t t = 0; t < 128; ++t)
      for (uint32_t r = 0; r < 4; ++r) {
        const uint32_t row = 16 * (t / 32) + t % 32 / 4 + 8 * (r % 2);
        const uint32_t k = step * slice + r / 2 * slice / 2 + 4 / element * (t % 4);
        uint32_t word = 0;
        for (uint32_t i = 0; i < 4 / element; ++i)
          word |= static_cast<uint32_t>(a[row * k_count + k + i]) << (8 * element * i);
        words.push_back(word);
      }
  return words;
}

// Runs A [64][K] times B [N][K] in K slices of one instruction; `element_of(row, column)` is the expected accumulator.
template <Kind KIND, int N, class Expect>
void run_product(Machine& machine, ptx::Swizzle swizzle_a, ptx::Swizzle swizzle_b, uint32_t k_count, const Codes& a,
                 const Codes& b, const std::vector<float>& initial, Expect element_of) {
  constexpr uint32_t kElement = is_e4m3(KIND) ? 1 : 2, kSlice = 32 / kElement;
  // A K-major line is at least one span long, more than the slices may fill.
  auto layout = [&](ptx::Swizzle swizzle, bool mn_major, uint32_t rows) {
    const uint32_t span = (16u << static_cast<int>(swizzle)) / kElement;
    return Layout{swizzle, mn_major, rows, mn_major ? k_count : std::max(k_count, span), kElement};
  };
  const Layout layout_a = layout(swizzle_a, has_trans_a(KIND), 64), layout_b = layout(swizzle_b, has_trans_b(KIND), N);
  const uint32_t b_at = has_fragment(KIND) ? 0 : (layout_a.bytes() + 1023) / 1024 * 1024;
  std::vector<uint8_t> image(b_at + layout_b.bytes());
  auto put = [&](const Layout& layout, const Codes& codes, uint32_t at) {
    for (uint32_t row = 0; row < layout.rows; ++row)
      for (uint32_t k = 0; k < k_count; ++k)
        memcpy(&image[at + layout.offset(row, k)], &codes[row * k_count + k], kElement);
  };
  if (!has_fragment(KIND)) put(layout_a, a, 0);
  put(layout_b, b, b_at);
  std::vector<float> expected, start;
  for (uint32_t t = 0; t < 128; ++t)
    for (uint32_t i = 0; i < N / 2; ++i) {
      const auto [row, column] = accumulator_at(t, i);
      expected.push_back(element_of(row, column));
      if (!initial.empty()) start.push_back(initial[row * N + column]);
    }
  ProductParams p{};
  auto* bytes = machine.input(image);
  p.image = reinterpret_cast<const uint32_t*>(bytes);
  p.words = static_cast<uint32_t>(image.size() / 4);
  p.a = layout_a.place(0, layout_a.slice_at(k_count > kSlice ? kSlice : 0));
  p.b = layout_b.place(b_at, layout_b.slice_at(k_count > kSlice ? kSlice : 0));
  p.fragments = machine.input(fragments_of(a, k_count, is_e4m3(KIND)));
  p.initial = initial.empty() ? nullptr : machine.input(start);
  p.steps = k_count / kSlice;
  float* out = machine.output<float>(expected.size());
  p.out = out;
  machine.launch(product_kernel<KIND, N>, {1, 128, static_cast<uint32_t>(image.size())}, p);
  machine.expect(out, expected);
}

// Small integers: their products and sums are exact in every order of addition.
template <Kind KIND, int N>
void layout_case(Machine& machine, ptx::Swizzle swizzle_a, ptx::Swizzle swizzle_b, uint32_t k_count, bool accumulate) {
  constexpr bool kE4m3 = is_e4m3(KIND);
  Numbers numbers(N + 1000 * static_cast<int>(KIND));
  auto codes = [&](uint32_t rows) {
    Codes all(rows * k_count);
    for (uint16_t& code : all) {
      const float value = static_cast<float>(numbers.below(9)) - 4.0f;
      code = static_cast<uint16_t>(kE4m3 ? e4m3_code(value) : bf16_code(value));
    }
    return all;
  };
  const Codes a = codes(64), b = codes(N);
  std::vector<float> initial(accumulate ? 64 * N : 0);
  for (float& value : initial) value = static_cast<float>(numbers.below(100));
  run_product<KIND, N>(machine, swizzle_a, swizzle_b, k_count, a, b, initial, [&](uint32_t row, uint32_t column) {
    double sum = accumulate ? initial[row * N + column] : 0.0;
    for (uint32_t k = 0; k < k_count; ++k)
      sum += decode(a[row * k_count + k], kE4m3) * decode(b[column * k_count + k], kE4m3);
    return static_cast<float>(sum);
  });
}

}  // namespace longcat_ops::conformance
