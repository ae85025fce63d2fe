// The table of wgmma layouts and shapes whose fragment order is checked.
#pragma once

#include "wgmma.cuh"

namespace longcat_ops::conformance {

inline const char* swizzle_name(ptx::Swizzle swizzle) {
  constexpr const char* kNames[] = {"none", "32", "64", "128"};
  return kNames[static_cast<int>(swizzle)];
}

// Two groups in flight: the first result is read while the second product may still run. A is all ones, B ones and then
// twos, K-major, not swizzled.
LC_KERNEL LC_LAUNCH_BOUNDS(128, 1) two_groups_kernel(float* out) {
  const uint32_t base = ptx::dynamic_smem_base(), t = ptx::thread_index();
  for (uint32_t i = t; i < 1024; i += 128) ptx::store_shared(base + 4 * i, i < 512 ? 0x38383838u : 0x40404040u);
  ptx::fence_proxy_async_shared();
  ptx::sync_threads();
  const uint64_t ones = ptx::make_descriptor(base, 1024, 128, ptx::Swizzle::kNone);
  const uint64_t twos = ptx::make_descriptor(base + 2048, 1024, 128, ptx::Swizzle::kNone);
  float first[4], second[4];
  ptx::wgmma_fence();
  ptx::wgmma_e4m3<8>(first, ones, ones, false);
  ptx::wgmma_commit();
  ptx::wgmma_e4m3<8>(second, ones, twos, false);
  ptx::wgmma_commit();
  ptx::wgmma_wait_for<1>(first);
  LC_UNROLL
  for (uint32_t i = 0; i < 4; ++i) ptx::store_global(out + 8 * t + i, first[i]);
  ptx::wgmma_wait<0>();
  ptx::wgmma_wait_for<0>(second);
  LC_UNROLL
  for (uint32_t i = 0; i < 4; ++i) ptx::store_global(out + 8 * t + 4 + i, second[i]);
}

inline void two_groups(Machine& machine) {
  std::vector<float> expected;
  for (uint32_t i = 0; i < 1024; ++i) expected.push_back(i % 8 < 4 ? 32.0f : 64.0f);
  auto* out = machine.output<float>(1024);
  machine.launch(two_groups_kernel, {1, 128, 4096}, out);
  machine.expect(out, expected);
}

constexpr const char* kProduct = " make_descriptor wgmma_fence wgmma_commit wgmma_wait_for";

// Products with 128-byte swizzle for the operands in shared memory.
template <Kind KIND, int... N>
void add_shapes(Cases& cases, const char* name, const char* primitive) {
  const auto swizzle = ptx::Swizzle::k128B;
  const uint32_t k_count = (is_e4m3(KIND) ? 128 : 64) / (has_trans_a(KIND) || has_trans_b(KIND) ? 4 : 1);
  (cases.add(std::string("wgmma/") + name + "_n" + std::to_string(N), primitive + std::string(kProduct),
             [=](Machine& machine) { layout_case<KIND, N>(machine, swizzle, swizzle, k_count, N % 16 == 0); }),
   ...);
}

// Products over every K slice of a span: the descriptor's address moves inside the swizzled rows.
template <Kind KIND, int N>
void add_swizzles(Cases& cases, const char* name, const char* primitive) {
  for (int i = 0; i < 4; ++i) {
    const auto swizzle = static_cast<ptx::Swizzle>(i);
    const uint32_t element = is_e4m3(KIND) ? 1 : 2, slice = 32 / element;
    const bool mn_major = has_trans_a(KIND) || has_trans_b(KIND);
    const uint32_t k_count = mn_major ? slice : std::max(16u << i, 32u) / element;
    cases.add(std::string("wgmma/") + name + "_swizzle_" + swizzle_name(swizzle), primitive + std::string(kProduct),
              [=](Machine& machine) { layout_case<KIND, N>(machine, swizzle, swizzle, k_count, false); });
  }
}

inline void wgmma_cases(Cases& cases) {
  const char *e4m3 = "wgmma_e4m3", *bf16 = "wgmma_bf16";
  add_shapes<Kind::kE4m3, 8, 16, 24, 40, 64, 128, 176, 256>(cases, "e4m3", e4m3);
  add_shapes<Kind::kE4m3FragmentA, 8, 64, 256>(cases, "e4m3_fragment", e4m3);
  add_shapes<Kind::kBf16, 8, 24, 64, 128, 256>(cases, "bf16", bf16);
  add_shapes<Kind::kBf16FragmentA, 8, 64>(cases, "bf16_fragment", bf16);
  add_shapes<Kind::kBf16FragmentATransB, 64>(cases, "bf16_fragment_trans_b", bf16);
  add_shapes<Kind::kBf16TransA, 64>(cases, "bf16_trans_a", bf16);
  add_shapes<Kind::kBf16TransB, 64, 128>(cases, "bf16_trans_b", bf16);
  add_shapes<Kind::kBf16TransAB, 64, 256>(cases, "bf16_trans_ab", bf16);
  add_swizzles<Kind::kE4m3, 16>(cases, "e4m3", e4m3);
  add_swizzles<Kind::kBf16, 8>(cases, "bf16", bf16);
  add_swizzles<Kind::kBf16TransAB, 64>(cases, "bf16_trans_ab", bf16);
  add_swizzles<Kind::kBf16TransB, 128>(cases, "bf16_trans_b", bf16);
  cases.add("wgmma/two_groups", "wgmma_wait wgmma_wait_for wgmma_commit wgmma_e4m3", two_groups);
}

}  // namespace longcat_ops::conformance
