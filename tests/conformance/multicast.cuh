// Multicast copies from global memory to blocks of a cluster.
#pragma once

#include "case.h"

namespace longcat_ops::conformance {

// Every block of the cluster starts with 512 bytes of 0xee; block `source` copies a box to the blocks of the
// mask. out [4][128] words: what every block then holds.
template <class Copy>
LC_DEVICE void multicast(uint32_t* out, uint32_t source, uint32_t mask, uint32_t bytes, Copy copy) {
  const uint32_t bar = ptx::dynamic_smem_base(), data = bar + 1024, t = ptx::thread_index();
  const uint32_t rank = ptx::cluster_rank();
  ptx::store_shared(data + 16 * t, ptx::Vec16{0xeeeeeeee, 0xeeeeeeee, 0xeeeeeeee, 0xeeeeeeee});
  ptx::fence_proxy_async_shared();
  if (t == 0) {
    ptx::mbarrier_init(bar, 1);
    ptx::fence_mbarrier_init();
  }
  ptx::cluster_sync();
  const bool receives = (mask >> rank & 1) != 0;
  if (t == 0 && receives) ptx::mbarrier_arrive_expect_tx(bar, bytes);
  if (t == 0 && rank == source) copy(data, bar, static_cast<uint16_t>(mask));
  if (receives) ptx::mbarrier_wait(bar, 0);
  for (uint32_t i = t; i < 128; i += 32)
    ptx::store_global(out + 128 * rank + i, ptx::load_shared<uint32_t>(data + 4 * i));
  ptx::cluster_sync();
}

// kLast: with an L2 policy, which does not change the result.
template <int R, bool kLast>
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) tma_multicast_kernel(LC_GRID_CONSTANT ptx::TensorMap map, uint32_t* out,
                                                       uint32_t source, uint32_t mask, uint32_t bytes) {
  multicast(out, source, mask, bytes, [&](uint32_t data, uint32_t bar, uint16_t cta_mask) {
    int32_t coord[R];
    LC_UNROLL
    for (int d = 0; d < R; ++d) coord[d] = d == 0 ? 4 : 1;
    if constexpr (kLast) {
      ptx::tma_load_multicast(data, &map, bar, coord, cta_mask, ptx::create_policy_evict_last());
    } else {
      ptx::tma_load_multicast(data, &map, bar, coord, cta_mask);
    }
  });
}

struct MulticastForm {
  uint32_t source, mask;
};
constexpr MulticastForm kMulticastForms[] = {{0, 0b1111}, {1, 0b0101}, {2, 0b1000}, {3, 0b1000}};

// What all blocks hold once those of the mask have received `words`.
inline std::vector<uint32_t> received(uint32_t mask, const std::vector<uint32_t>& words) {
  std::vector<uint32_t> all(4 * 128, 0xeeeeeeee);
  for (uint32_t rank = 0; rank < 4; ++rank)
    for (size_t i = 0; (mask >> rank & 1) != 0 && i < words.size(); ++i) all[128 * rank + i] = words[i];
  return all;
}

// A box of 8 x 2 x 1 ... words at (4, 1, 1, ...) of a tensor of 16 x 4 x 2 x 2 x 2.
template <int R, bool kLast = false>
void tma_multicast(Machine& machine) {
  constexpr uint64_t kSizes[] = {16, 4, 2, 2, 2};
  Tensor tensor{Element::kU32, {}, {}, {}};
  uint64_t count = 1, start = 0;
  for (int d = 0; d < R; ++d) {
    start += count * (d == 0 ? 4 : 1);
    tensor.sizes.push_back(kSizes[d]);
    tensor.box.push_back(d == 0 ? 8 : d == 1 ? 2 : 1);
    count *= kSizes[d];
    if (d + 1 < R) tensor.strides.push_back(4 * count);
  }
  const auto data = random_values<uint32_t>(count, R);
  std::vector<uint32_t> box;
  for (uint32_t row = 0; row < (R == 1 ? 1u : 2u); ++row)
    for (uint32_t i = 0; i < 8; ++i) box.push_back(data[start + 16 * row + i]);
  const ptx::TensorMap map = machine.tensor_map(machine.input(data), tensor);
  for (const MulticastForm& form : kMulticastForms) {
    auto* out = machine.output<uint32_t>(4 * 128);
    Launch launch{4, 32, 2048};
    launch.cluster = 4;
    machine.launch(tma_multicast_kernel<R, kLast>, launch, map, out, form.source, form.mask, tensor.box_bytes());
    machine.expect(out, received(form.mask, box));
  }
}

// Block 0 fills a ring of two stages in both blocks; a stage is free when both have read it. kRelaxed: block 0 waits
// for a free stage by relaxed waits and a fence of shared memory alone. out [2][6][32].
template <bool kRelaxed>
LC_KERNEL LC_LAUNCH_BOUNDS(64, 1) multicast_ring_kernel(LC_GRID_CONSTANT ptx::TensorMap map, uint32_t* out) {
  const uint32_t bars = ptx::dynamic_smem_base(), rank = ptx::cluster_rank(), lane = ptx::lane_index();
  if (ptx::thread_index() == 0) {
    for (uint32_t s = 0; s < 2; ++s) {
      ptx::mbarrier_init(bars + 16 * s, 1);       // full
      ptx::mbarrier_init(bars + 16 * s + 8, 64);  // empty
    }
    ptx::fence_mbarrier_init();
  }
  ptx::cluster_arrive_relaxed();
  ptx::cluster_wait_acquire();
  for (uint32_t step = 0; step < 6; ++step) {
    const uint32_t full = bars + 16 * (step % 2), empty = full + 8, stage = bars + 128 + 128 * (step % 2);
    const uint32_t parity = step / 2 % 2;
    if (ptx::warp_index() == 0) {
      if (lane == 0) {
        if (rank == 0) {
          if constexpr (kRelaxed) {
            if (step % 2 == 0) {
              ptx::mbarrier_wait_relaxed_cluster(empty, parity ^ 1);
            } else {
              while (!ptx::mbarrier_try_wait_relaxed_cluster(empty, parity ^ 1)) {
              }
            }
            ptx::fence_acquire_shared_cluster();
          } else {
            ptx::mbarrier_wait_cluster(empty, parity ^ 1);
          }
        }
        ptx::mbarrier_arrive_expect_tx(full, 128);
        if (rank == 0) ptx::tma_load_multicast(stage, &map, full, {static_cast<int32_t>(32 * step)}, 0b11);
        ptx::mbarrier_wait(full, parity);
      }
      continue;
    }
    ptx::mbarrier_wait(full, parity);
    ptx::store_global(out + 192 * rank + 32 * step + lane, ptx::load_shared<uint32_t>(stage + 4 * lane));
    ptx::fence_release_shared_cluster();
    ptx::mbarrier_arrive_relaxed_cluster(ptx::cluster_address(empty, 0));
  }
  ptx::cluster_sync();
}

template <bool kRelaxed>
void multicast_ring(Machine& machine) {
  const auto data = random_values<uint32_t>(192, 11);
  std::vector<uint32_t> expected = data;
  expected.insert(expected.end(), data.begin(), data.end());
  auto* out = machine.output<uint32_t>(expected.size());
  Launch launch{2, 64, 1024};
  launch.cluster = 2;
  const Tensor tensor{Element::kU32, {192}, {}, {32}};
  machine.launch(multicast_ring_kernel<kRelaxed>, launch, machine.tensor_map(machine.input(data), tensor), out);
  machine.expect(out, expected);
}

// Block 1 writes words into block 0, which writes them out by a bulk store. out [32].
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) fenced_store_kernel(uint32_t* out) {
  const uint32_t words = ptx::dynamic_smem_base(), t = ptx::thread_index(), rank = ptx::cluster_rank();
  ptx::cluster_sync();
  if (rank == 1) {
    ptx::store_shared_cluster(ptx::cluster_address(words + 4 * t, 0), 3 * t + 1);
    ptx::fence_proxy_async_shared_cluster();
  }
  ptx::cluster_sync();
  if (rank != 0 || t != 0) return;
  ptx::bulk_store(out, words, 128);
  ptx::bulk_commit();
  ptx::bulk_wait_read<0>();
}

inline void fenced_store(Machine& machine) {
  std::vector<uint32_t> expected;
  for (uint32_t t = 0; t < 32; ++t) expected.push_back(3 * t + 1);
  auto* out = machine.output<uint32_t>(expected.size());
  Launch launch{2, 32, 1024};
  launch.cluster = 2;
  machine.launch(fenced_store_kernel, launch, out);
  machine.expect(out, expected);
}

inline void multicast_cases(Cases& cases) {
  cases.add("multicast/tma_1d", "tma_load_multicast", tma_multicast<1>);
  cases.add("multicast/tma_2d", "tma_load_multicast", tma_multicast<2>);
  cases.add("multicast/tma_3d", "tma_load_multicast", tma_multicast<3>);
  cases.add("multicast/tma_4d", "tma_load_multicast", tma_multicast<4>);
  cases.add("multicast/tma_5d", "tma_load_multicast", tma_multicast<5>);
  cases.add("multicast/tma_evict_last", "tma_load_multicast create_policy_evict_last", tma_multicast<3, true>);
  cases.add("multicast/ring", "tma_load_multicast mbarrier_arrive_relaxed_cluster fence_release_shared_cluster",
            multicast_ring<false>);
  cases.add("multicast/ring_relaxed",
            "mbarrier_wait_relaxed_cluster mbarrier_try_wait_relaxed_cluster fence_acquire_shared_cluster",
            multicast_ring<true>);
  cases.add("multicast/after_fence", "fence_proxy_async_shared_cluster", fenced_store);
}

}  // namespace longcat_ops::conformance
