// ldmatrix and stmatrix: which bytes of shared memory belong to which register of which lane.
#pragma once

#include "case.h"

namespace longcat_ops::conformance {

// Loads image [8 X rows][8] u16 through shared memory, lane l addressing row l % (8 X); out [32][X] u32.
template <int X, bool TRANS>
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) load_matrix_kernel(const uint32_t* image, uint32_t* out) {
  const uint32_t base = ptx::dynamic_smem_base(), lane = ptx::lane_index();
  for (uint32_t i = lane; i < 32 * X; i += 32) ptx::store_shared(base + 4 * i, ptx::load_global(image + i));
  ptx::warp_sync();
  uint32_t r[X];
  ptx::load_matrix<X, TRANS>(r, base + 16 * (lane % (8 * X)));
  LC_UNROLL
  for (uint32_t i = 0; i < X; ++i) ptx::store_global(out + X * lane + i, r[i]);
}

// in [32][X] u32: the fragments; out: the bytes of shared memory.
template <int X, bool TRANS>
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) store_matrix_kernel(const uint32_t* in, uint32_t* out) {
  const uint32_t base = ptx::dynamic_smem_base(), lane = ptx::lane_index();
  uint32_t r[X];
  LC_UNROLL
  for (uint32_t i = 0; i < X; ++i) r[i] = ptx::load_global(in + X * lane + i);
  ptx::store_matrix<X, TRANS>(base + 16 * (lane % (8 * X)), r);
  ptx::warp_sync();
  for (uint32_t i = lane; i < 32 * X; i += 32) ptx::store_global(out + i, ptx::load_shared<uint32_t>(base + 4 * i));
}

// ISA, ldmatrix: lane l holds in register i of matrix i the elements (l / 4, 2 (l % 4)) and (l / 4, 2 (l % 4) + 1), of
// the transposed matrix with .trans. image element of matrix i at (row, column): 64 i + 8 row + column.
inline std::vector<uint32_t> matrix_fragments(const std::vector<uint16_t>& image, uint32_t count, bool transposed) {
  std::vector<uint32_t> fragments(32 * count);
  for (uint32_t lane = 0; lane < 32; ++lane)
    for (uint32_t i = 0; i < count; ++i) {
      const uint32_t row = lane / 4, column = lane % 4 * 2;
      auto element = [&](uint32_t r, uint32_t c) -> uint32_t {
        return transposed ? image[64 * i + 8 * c + r] : image[64 * i + 8 * r + c];
      };
      fragments[count * lane + i] = element(row, column) | element(row, column + 1) << 16;
    }
  return fragments;
}

inline std::vector<uint32_t> as_words(const std::vector<uint16_t>& values) {
  std::vector<uint32_t> words(values.size() / 2);
  memcpy(words.data(), values.data(), 4 * words.size());
  return words;
}

template <int X, bool TRANS>
void add_matrix_cases(Cases& cases) {
  const std::string form = "x" + std::to_string(X) + (TRANS ? "_trans" : "");
  cases.add("matrix/load_" + form, "load_matrix", [](Machine& machine) {
    const auto image = random_values<uint16_t>(64 * X, X);
    auto* out = machine.output<uint32_t>(32 * X);
    machine.launch(load_matrix_kernel<X, TRANS>, {1, 32, 1024}, machine.input(as_words(image)), out);
    machine.expect(out, matrix_fragments(image, X, TRANS));
  });
  cases.add("matrix/store_" + form, "store_matrix", [](Machine& machine) {
    const auto image = random_values<uint16_t>(64 * X, 100 + X);
    auto* out = machine.output<uint32_t>(32 * X);
    auto* fragments = machine.input(matrix_fragments(image, X, TRANS));
    machine.launch(store_matrix_kernel<X, TRANS>, {1, 32, 1024}, fragments, out);
    machine.expect(out, as_words(image));
  });
}

inline void matrix_cases(Cases& cases) {
  add_matrix_cases<1, false>(cases);
  add_matrix_cases<2, false>(cases);
  add_matrix_cases<4, false>(cases);
  add_matrix_cases<1, true>(cases);
  add_matrix_cases<2, true>(cases);
  add_matrix_cases<4, true>(cases);
}

}  // namespace longcat_ops::conformance
