// Contiguous bulk copies and reductions, their groups, and the fences between them and ordinary accesses.
#pragma once

#include "case.h"

namespace longcat_ops::conformance {

// Copies in to shared memory in pieces of 16, 32, 64, ... bytes and the rest, then on to out in the same pieces.
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) bulk_copy_kernel(const uint8_t* in, uint8_t* out, uint32_t bytes) {
  const uint32_t bar = ptx::dynamic_smem_base(), buffer = bar + 128;
  if (ptx::lane_index() != 0) return;
  ptx::mbarrier_init(bar, 1);
  ptx::fence_mbarrier_init();
  ptx::mbarrier_arrive_expect_tx(bar, bytes);
  for (uint32_t at = 0, size = 16; at < bytes; at += size, size *= 2)
    ptx::bulk_load(buffer + at, in + at, size < bytes - at ? size : bytes - at, bar);
  ptx::mbarrier_wait(bar, 0);
  for (uint32_t at = 0, size = 16; at < bytes; at += size, size *= 2)
    ptx::bulk_store(out + at, buffer + at, size < bytes - at ? size : bytes - at);
  ptx::bulk_commit();
  ptx::bulk_wait<0>();
}

inline void bulk_copies(Machine& machine) {
  for (const uint32_t bytes : {16u, 48u, 1008u, 8192u, 32768u}) {
    const auto data = random_values<uint8_t>(bytes, bytes);
    auto* out = machine.output<uint8_t>(bytes);
    machine.launch(bulk_copy_kernel, {1, 32, 128 + bytes}, static_cast<const uint8_t*>(machine.input(data)), out,
                   bytes);
    machine.expect(out, data);
  }
}

// Stores a buffer of 64 words to out [8][64] eight times and rewrites it as soon as wait_read allows.
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) reuse_kernel(uint32_t* out) {
  const uint32_t buffer = ptx::dynamic_smem_base(), lane = ptx::lane_index();
  for (uint32_t round = 0; round < 8; ++round) {
    // Two halves alternate, so one group may still be reading.
    const uint32_t half = buffer + 256 * (round % 2);
    if (lane == 0) ptx::bulk_wait_read<1>();
    ptx::warp_sync();
    ptx::store_shared(half + 4 * lane, 100 * round + lane);
    ptx::store_shared(half + 4 * (lane + 32), 100 * round + lane + 32);
    ptx::fence_proxy_async_shared();
    ptx::warp_sync();
    if (lane == 0) {
      ptx::bulk_store(out + 64 * round, half, 256);
      ptx::bulk_commit();
    }
  }
  if (lane == 0) ptx::bulk_wait_read<0>();
}

inline void bulk_reuse(Machine& machine) {
  std::vector<uint32_t> expected;
  for (uint32_t round = 0; round < 8; ++round)
    for (uint32_t i = 0; i < 64; ++i) expected.push_back(100 * round + i);
  auto* out = machine.output<uint32_t>(expected.size());
  machine.launch(reuse_kernel, {1, 32, 512}, out);
  machine.expect(out, expected);
}

// Adds in [count] f32 to sum [count].
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) bulk_reduce_kernel(const float* in, float* sum, uint32_t count) {
  const uint32_t buffer = ptx::dynamic_smem_base(), lane = ptx::lane_index();
  for (uint32_t i = lane; i < count; i += 32) ptx::store_shared(buffer + 4 * i, ptx::load_global(in + i));
  ptx::fence_proxy_async_shared();
  ptx::warp_sync();
  if (lane != 0) return;
  ptx::bulk_reduce_add_f32(sum, buffer, 4 * count);
  ptx::bulk_commit();
  ptx::bulk_wait<0>();
}

// One rounding per element: sums such as 1 + 2^-24 show how the unit rounds. No subnormals: the ISA does not say
// whether this instruction flushes them.
inline void bulk_reduce(Machine& machine) {
  std::vector<float> a = {1.0f, 1.0f, 16777216.0f, -1.0f, 3.0e38f, 0.5f, 1.5f, -0.0f};
  std::vector<float> b = {0x1p-24f, 0x1.8p-24f, 1.0f, 0x1p-25f, 3.0e38f, -0.5f, 0x1.000002p0f, -0.0f};
  Numbers numbers(9);
  for (int i = 0; i < 248; ++i) {
    a.push_back(static_cast<float>(numbers.next()) * 0x1p-20f);
    b.push_back(static_cast<float>(numbers.next()) * -0x1p-24f);
  }
  std::vector<float> expected;
  for (size_t i = 0; i < a.size(); ++i) expected.push_back(a[i] + b[i]);
  auto* sum = machine.input(a);
  machine.launch(bulk_reduce_kernel, {1, 32, 1024}, static_cast<const float*>(machine.input(b)), sum,
                 static_cast<uint32_t>(a.size()));
  machine.expect(sum, expected);
}

// Block 0 writes data [64] and raises the flag; block 1 acquires, fences and reads the data by a bulk copy. BOTH: the
// fence covers all state spaces. The wait is bounded.
template <bool BOTH>
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) fenced_copy_kernel(uint32_t* data, uint32_t* flag, uint32_t* out) {
  const uint32_t bar = ptx::dynamic_smem_base(), buffer = bar + 128;
  if (ptx::lane_index() != 0) return;
  if (ptx::block_index() == 0) {
    for (uint32_t i = 0; i < 64; ++i) ptx::store_global(data + i, 5 * i + 2);
    ptx::store_release_gpu(flag, 1u);
    return;
  }
  ptx::mbarrier_init(bar, 1);
  ptx::fence_mbarrier_init();
  constexpr uint32_t kPolls = 1 << 20;
  for (uint32_t i = 0; i < kPolls && ptx::load_acquire_gpu(flag) == 0; ++i) ptx::spin_pause();
  if (BOTH)
    ptx::fence_proxy_async();
  else
    ptx::fence_proxy_async_global();
  ptx::mbarrier_arrive_expect_tx(bar, 256);
  ptx::bulk_load(buffer, data, 256, bar);
  ptx::mbarrier_wait(bar, 0);
  for (uint32_t i = 0; i < 64; ++i) ptx::store_global(out + i, ptx::load_shared<uint32_t>(buffer + 4 * i));
}

template <bool BOTH>
void fenced_copy(Machine& machine) {
  std::vector<uint32_t> expected;
  for (uint32_t i = 0; i < 64; ++i) expected.push_back(5 * i + 2);
  auto *data = machine.output<uint32_t>(64), *out = machine.output<uint32_t>(64);
  auto* flag = machine.input(std::vector<uint32_t>{0});
  machine.launch(fenced_copy_kernel<BOTH>, {2, 32, 512}, data, flag, out);
  machine.expect(out, expected);
}

inline void bulk_cases(Cases& cases) {
  cases.add("bulk/copies", "bulk_load bulk_store bulk_commit bulk_wait", bulk_copies);
  cases.add("bulk/reuse", "bulk_wait_read bulk_commit fence_proxy_async_shared", bulk_reuse);
  cases.add("bulk/reduce_add_f32", "bulk_reduce_add_f32", bulk_reduce);
  const char* note = "that the data were there; one run proves no order";
  cases.add("bulk/after_fence_global", "fence_proxy_async_global", fenced_copy<false>, note);
  cases.add("bulk/after_fence", "fence_proxy_async", fenced_copy<true>, note);
}

}  // namespace longcat_ops::conformance
