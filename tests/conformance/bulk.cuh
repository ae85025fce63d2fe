// Contiguous bulk copies, their groups, and the fences between them and ordinary accesses.
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
  const char* note = "that the data were there; one run proves no order";
  cases.add("bulk/after_fence_global", "fence_proxy_async_global", fenced_copy<false>, note);
  cases.add("bulk/after_fence", "fence_proxy_async", fenced_copy<true>, note);
}

}  // namespace longcat_ops::conformance
