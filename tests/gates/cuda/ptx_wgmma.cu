// Issues wgmma products of every kind and N. Compiled, never run.
#include <utility>

#include "ptx/ptx.cuh"

namespace longcat_ops {

enum class Kind { kE4m3, kE4m3FragmentA, kBf16, kBf16Transposed, kBf16FragmentA, kBf16FragmentATransposedB };

template <Kind KIND, int N>
LC_DEVICE void multiply(float (&acc)[N / 2], const uint32_t (&fragment)[4], uint64_t a, uint64_t b, bool accumulate) {
  if constexpr (KIND == Kind::kE4m3) ptx::wgmma_e4m3<N>(acc, a, b, accumulate);
  if constexpr (KIND == Kind::kE4m3FragmentA) ptx::wgmma_e4m3<N>(acc, fragment, b, accumulate);
  if constexpr (KIND == Kind::kBf16) ptx::wgmma_bf16<N>(acc, a, b, accumulate);
  if constexpr (KIND == Kind::kBf16Transposed) ptx::wgmma_bf16<N, 1, 1>(acc, a, b, accumulate);
  if constexpr (KIND == Kind::kBf16FragmentA) ptx::wgmma_bf16<N>(acc, fragment, b, accumulate);
  if constexpr (KIND == Kind::kBf16FragmentATransposedB) ptx::wgmma_bf16<N, 1>(acc, fragment, b, accumulate);
}

// Fence, two products, commit, and a wait that the accumulators are tied to.
template <Kind KIND, int N>
LC_KERNEL LC_LAUNCH_BOUNDS(128, 1) product_kernel(float* out, uint32_t stride) {
  const uint32_t smem = ptx::dynamic_smem_base();
  const uint64_t a = ptx::make_descriptor(smem, 16, stride, ptx::Swizzle::k128B);
  const uint64_t b = ptx::make_descriptor(smem + 8192, 16, stride, ptx::Swizzle::k64B);
  uint32_t fragment[4];
  ptx::load_matrix<4, false>(fragment, smem + 16 * ptx::thread_index());
  float acc[N / 2];
  ptx::wgmma_fence();
  multiply<KIND, N>(acc, fragment, a, b, false);
  multiply<KIND, N>(acc, fragment, a, b, true);
  ptx::wgmma_commit();
  ptx::wgmma_wait_for<0>(acc);
  LC_UNROLL
  for (int i = 1; i < N / 2; ++i) acc[0] += acc[i];
  ptx::store_global(out + ptx::thread_index(), acc[0]);
}

// Instantiates every N.
template <Kind KIND, int... I>
void keep(const void** out, std::integer_sequence<int, I...>) {
  ((*out++ = reinterpret_cast<const void*>(&product_kernel<KIND, 8 * I + 8>)), ...);
}
void keep_all(const void** out) {
  constexpr std::make_integer_sequence<int, 32> kAll;
  keep<Kind::kE4m3>(out, kAll);
  keep<Kind::kE4m3FragmentA>(out, kAll);
  keep<Kind::kBf16>(out, kAll);
  keep<Kind::kBf16Transposed>(out, kAll);
  keep<Kind::kBf16FragmentA>(out, kAll);
  keep<Kind::kBf16FragmentATransposedB>(out, kAll);
}

// Two groups in flight.
LC_KERNEL LC_LAUNCH_BOUNDS(128, 1) overlap_kernel(float* out, uint64_t a, uint64_t b) {
  float first[4], second[4];
  ptx::wgmma_fence();
  ptx::wgmma_e4m3<8>(first, a, b, false);
  ptx::wgmma_commit();
  ptx::wgmma_e4m3<8>(second, a + 2, b + 2, false);
  ptx::wgmma_commit();
  ptx::wgmma_wait_for<1>(first);
  ptx::store_global(out, first[0]);
  ptx::wgmma_wait<0>();
  ptx::wgmma_wait_for<0>(second);
  ptx::store_global(out + 1, second[0]);
}

// A descriptor holds bytes / 16 in its fields and the layout in the top two bits.
constexpr uint64_t kFields = 0x0000078900561234;
static_assert(ptx::make_descriptor(0x12340, 0x560, 0x7890, ptx::Swizzle::kNone) == kFields);
static_assert(ptx::make_descriptor(0x12340, 0x560, 0x7890, ptx::Swizzle::k128B) == (kFields | uint64_t{1} << 62));
static_assert(ptx::make_descriptor(0x12340, 0x560, 0x7890, ptx::Swizzle::k64B) == (kFields | uint64_t{2} << 62));
static_assert(ptx::make_descriptor(0x12340, 0x560, 0x7890, ptx::Swizzle::k32B) == (kFields | uint64_t{3} << 62));
static_assert(ptx::make_descriptor(0x3fff0, 0x3fff0, 0x3fff0, ptx::Swizzle::kNone) == 0x00003fff3fff3fff);

}  // namespace longcat_ops
