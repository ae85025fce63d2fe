// Thread-block clusters: ranks, the cluster barrier, loads, stores, atomics and mbarriers across blocks.
#pragma once

#include "case.h"

namespace longcat_ops::conformance {

// out [blocks][3 + size]: rank, size, cluster, and the rank read through cluster_address from each block.
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) cluster_register_kernel(uint32_t* out) {
  const uint32_t base = ptx::dynamic_smem_base(), size = ptx::cluster_size(), rank = ptx::cluster_rank();
  if (ptx::thread_index() == 0) ptx::store_shared(base + 64, 1000 + rank);
  ptx::cluster_sync();
  if (ptx::thread_index() == 0) {
    uint32_t* row = out + (3 + size) * ptx::block_index();
    ptx::store_global(row, rank);
    ptx::store_global(row + 1, size);
    ptx::store_global(row + 2, ptx::cluster_index());
    for (uint32_t r = 0; r < size; ++r)
      ptx::store_global(row + 3 + r, ptx::load_shared_cluster<uint32_t>(ptx::cluster_address(base + 64, r)));
  }
  ptx::cluster_sync();
}

inline void cluster_registers(Machine& machine) {
  for (const uint32_t size : {1u, 2u, 4u, 8u}) {
    std::vector<uint32_t> expected;
    for (uint32_t block = 0; block < 3 * size; ++block) {
      for (const uint32_t value : {block % size, size, block / size}) expected.push_back(value);
      for (uint32_t r = 0; r < size; ++r) expected.push_back(1000 + r);
    }
    auto* out = machine.output<uint32_t>(expected.size());
    Launch launch{3 * size, 32, 1024};
    launch.cluster = size;
    machine.launch(cluster_register_kernel, launch, out);
    machine.expect(out, expected);
  }
}

// Every thread stores a value to the next block and reads from the block after that the value stored there.
// in, out [4][64].
template <class T, bool FENCED>
LC_KERNEL LC_LAUNCH_BOUNDS(64, 1) cluster_exchange_kernel(const T* in, T* out) {
  const uint32_t base = ptx::dynamic_smem_base(), rank = ptx::cluster_rank(), t = ptx::thread_index();
  const auto meet = [] {
    if constexpr (FENCED) {
      ptx::fence_acq_rel_cluster();
      ptx::cluster_arrive_relaxed();
    } else {
      ptx::cluster_arrive_release();
    }
    ptx::cluster_wait_acquire();
  };
  meet();
  const uint32_t at = base + static_cast<uint32_t>(sizeof(T)) * t;
  ptx::store_shared_cluster(ptx::cluster_address(at, (rank + 1) % 4), ptx::load_global(in + 64 * rank + t));
  meet();
  ptx::store_global(out + 64 * rank + t, ptx::load_shared_cluster<T>(ptx::cluster_address(at, (rank + 2) % 4)));
  meet();
}

// Bytes of `per_block` values of T for each of 4 blocks; block `rank` gets the values of block rank + `turn`. turn 0 is
// the input, another turn the expected output.
template <class T>
std::vector<uint8_t> block_values(uint32_t per_block, uint32_t turn) {
  const auto values = random_values<uint8_t>(4 * per_block * sizeof(T), sizeof(T));
  std::vector<uint8_t> turned(values.size());
  const size_t bytes = per_block * sizeof(T);
  for (uint32_t rank = 0; rank < 4; ++rank)
    memcpy(turned.data() + bytes * rank, values.data() + bytes * ((rank + turn) % 4), bytes);
  return turned;
}

template <class T, bool FENCED>
void cluster_exchange(Machine& machine) {
  auto* in = reinterpret_cast<const T*>(machine.input(block_values<T>(64, 0)));
  auto* out = machine.output<uint8_t>(4 * 64 * sizeof(T));
  Launch launch{4, 64, 1024};
  launch.cluster = 4;
  machine.launch(cluster_exchange_kernel<T, FENCED>, launch, in, reinterpret_cast<T*>(out));
  machine.expect(out, block_values<T>(64, 1));
}

// The 128 threads of 4 blocks update counters of block 0. out [132]: at each ticket its number + 1; two sums; a 64-bit
// sum that the threads update in turn, each acquiring and releasing it.
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) cluster_atomics_kernel(uint32_t* out) {
  const uint32_t base = ptx::dynamic_smem_base(), first = ptx::cluster_address(base, 0);
  const uint32_t ticket = first, relaxed = first + 4, released = first + 8, turn = first + 12, wide = first + 16;
  if (ptx::thread_index() < 8) ptx::store_shared(base + 4 * ptx::thread_index(), 0u);
  ptx::cluster_sync();
  const uint32_t mine = ptx::atomic_add_acq_rel_cluster(ticket, 1);
  ptx::store_global(out + mine, mine + 1);
  ptx::red_add_relaxed_cluster(relaxed, mine);
  ptx::red_add_release_cluster(released, 3);
  while (ptx::load_acquire_cluster<uint32_t>(turn) != mine) ptx::spin_pause();
  // From here to the release, one thread at a time.
  const uint64_t before = ptx::load_relaxed_cluster<uint64_t>(wide);
  ptx::store_relaxed_cluster(wide, before + (uint64_t{1} << 32) + mine);
  ptx::store_release_cluster(turn, mine + 1);
  ptx::cluster_sync();
  if (ptx::block_index() == 3 && ptx::thread_index() == 31) {
    ptx::store_global(out + 128, ptx::load_relaxed_cluster<uint32_t>(relaxed));
    ptx::store_global(out + 129, ptx::load_acquire_cluster<uint32_t>(released));
    const uint64_t sum = ptx::load_acquire_cluster<uint64_t>(wide);
    ptx::store_global(out + 130, static_cast<uint32_t>(sum));
    ptx::store_global(out + 131, static_cast<uint32_t>(sum >> 32));
  }
  ptx::cluster_sync();
}

inline void cluster_atomics(Machine& machine) {
  std::vector<uint32_t> expected;
  for (uint32_t i = 0; i < 128; ++i) expected.push_back(i + 1);
  for (const uint32_t value : {128u * 127 / 2, 3u * 128, 128u * 127 / 2, 128u}) expected.push_back(value);
  auto* out = machine.output<uint32_t>(expected.size());
  Launch launch{4, 32, 1024};
  launch.cluster = 4;
  machine.launch(cluster_atomics_kernel, launch, out);
  machine.expect(out, expected);
}

// Block 1 updates an mbarrier of block 0 step by step; after each step block 0 tests whether phase 0 is complete.
// out [6]: the five answers, then a word that store_async delivered.
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) cluster_mbarrier_kernel(uint32_t* out) {
  const uint32_t bar = ptx::dynamic_smem_base(), word = bar + 64, rank = ptx::cluster_rank();
  const bool lead = ptx::thread_index() == 0;
  if (lead) {
    ptx::mbarrier_init(bar, 3);
    ptx::fence_mbarrier_init();
  }
  ptx::cluster_arrive_relaxed();
  ptx::cluster_wait_acquire();
  const uint32_t there = ptx::cluster_address(bar, 0);
  for (uint32_t step = 0; step < 5; ++step) {
    if (lead && rank == 1) {
      if (step == 1) ptx::mbarrier_arrive_cluster(there);
      if (step == 2) ptx::mbarrier_expect_tx_cluster(there, 4);
      if (step == 3) ptx::mbarrier_arrive_relaxed_cluster(there);
      if (step == 4) ptx::mbarrier_arrive_expect_tx_cluster(there, 12);
    }
    ptx::cluster_sync();
    if (lead && rank == 0)
      ptx::store_global(out + step, static_cast<uint32_t>(ptx::mbarrier_test_wait_cluster(bar, 0)));
    ptx::cluster_sync();
  }
  // The phase still lacks 16 bytes.
  if (lead && rank == 1) ptx::store_async(ptx::cluster_address(word, 0), ptx::Vec16{5, 6, 7, 8}, there);
  if (lead && rank == 0) {
    while (!ptx::mbarrier_try_wait_cluster(bar, 0)) {
    }
    ptx::store_global(out + 5, ptx::load_shared<uint32_t>(word + 8));
  }
  ptx::cluster_sync();
}

inline void cluster_mbarrier(Machine& machine) {
  const std::vector<uint32_t> expected = {0, 0, 0, 0, 0, 7};
  auto* out = machine.output<uint32_t>(expected.size());
  Launch launch{2, 32, 1024};
  launch.cluster = 2;
  machine.launch(cluster_mbarrier_kernel, launch, out);
  machine.expect(out, expected);
}

// Every thread sends a value to the next of 4 blocks. in, out [4][32].
template <class T>
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) store_async_kernel(const T* in, T* out) {
  const uint32_t bar = ptx::dynamic_smem_base(), words = bar + 64, t = ptx::thread_index(), rank = ptx::cluster_rank();
  if (t == 0) {
    ptx::mbarrier_init(bar, 1);
    ptx::fence_mbarrier_init();
  }
  ptx::cluster_arrive_relaxed();
  ptx::cluster_wait_acquire();
  const uint32_t next = (rank + 1) % 4, at = words + static_cast<uint32_t>(sizeof(T)) * t;
  if (t == 0) ptx::mbarrier_arrive_expect_tx(bar, 32 * static_cast<uint32_t>(sizeof(T)));
  ptx::store_async(ptx::cluster_address(at, next), ptx::load_global(in + 32 * rank + t),
                   ptx::cluster_address(bar, next));
  ptx::mbarrier_wait_cluster(bar, 0);
  ptx::store_global(out + 32 * rank + t, ptx::load_shared<T>(at));
  ptx::cluster_sync();
}

template <class T>
void async_stores(Machine& machine) {
  auto* in = reinterpret_cast<const T*>(machine.input(block_values<T>(32, 0)));
  auto* out = machine.output<uint8_t>(4 * 32 * sizeof(T));
  Launch launch{4, 32, 1024};
  launch.cluster = 4;
  machine.launch(store_async_kernel<T>, launch, in, reinterpret_cast<T*>(out));
  machine.expect(out, block_values<T>(32, 3));
}

inline void cluster_cases(Cases& cases) {
  cases.add("cluster/registers", "cluster_rank cluster_size cluster_index cluster_address cluster_sync",
            cluster_registers);
  const char* exchange = "load_shared_cluster store_shared_cluster cluster_arrive_release cluster_wait_acquire";
  cases.add("cluster/exchange_1", exchange, cluster_exchange<uint8_t, false>);
  cases.add("cluster/exchange_2", exchange, cluster_exchange<uint16_t, false>);
  cases.add("cluster/exchange_4", exchange, cluster_exchange<uint32_t, false>);
  cases.add("cluster/exchange_8", exchange, cluster_exchange<ptx::Vec8, false>);
  cases.add("cluster/exchange_16", exchange, cluster_exchange<ptx::Vec16, false>);
  cases.add("cluster/exchange_fenced", "cluster_arrive_relaxed fence_acq_rel_cluster cluster_wait_acquire",
            cluster_exchange<uint32_t, true>);
  cases.add("cluster/atomics",
            "atomic_add_acq_rel_cluster red_add_relaxed_cluster red_add_release_cluster load_relaxed_cluster "
            "load_acquire_cluster store_relaxed_cluster store_release_cluster",
            cluster_atomics, "which thread draws which ticket: the output has the tickets");
  cases.add("cluster/mbarrier",
            "mbarrier_arrive_cluster mbarrier_arrive_relaxed_cluster mbarrier_expect_tx_cluster "
            "mbarrier_arrive_expect_tx_cluster mbarrier_test_wait_cluster mbarrier_try_wait_cluster",
            cluster_mbarrier);
  const char* async = "store_async mbarrier_wait_cluster";
  cases.add("cluster/store_async_4", async, async_stores<uint32_t>);
  cases.add("cluster/store_async_8", async, async_stores<ptx::Vec8>);
  cases.add("cluster/store_async_16", async, async_stores<ptx::Vec16>);
}

}  // namespace longcat_ops::conformance
