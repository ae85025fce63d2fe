// Helpers of the cluster tests.
#pragma once

#include "check.h"

namespace test {

// Runs one launch of `clusters` clusters to its end.
template <class Body>
void run_clusters(emu::World& world, uint32_t clusters, uint32_t size, uint32_t block, Body body) {
  world.launch({.grid = clusters * size,
                .block = block,
                .cluster = size,
                .smem_bytes = 4096,
                .registers_per_thread = 64,
                .body = body});
  world.synchronize();
}
template <class Body>
void run_clusters(uint32_t size, uint32_t block, Body body) {
  for (const emu::Policy policy : kPolicies)
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      emu::World world(seed, policy);
      run_clusters(world, 2, size, block, body);
    }
}

// Initialises an mbarrier at the start of every CTA's shared memory and makes it visible to the whole cluster.
inline uint32_t shared_barrier(uint32_t count) {
  const uint32_t bar = ptx::dynamic_smem_base();
  if (ptx::thread_index() == 0) {
    ptx::mbarrier_init(bar, count);
    ptx::fence_mbarrier_init();
  }
  ptx::cluster_arrive_relaxed();
  ptx::cluster_wait_acquire();
  return bar;
}

// An array of words as a tensor.
inline ptx::TensorMap words_map(uint32_t* data, uint64_t words, uint32_t box = 32) {
  return {.base = reinterpret_cast<uint8_t*>(data),
          .rank = 1,
          .element_size = 4,
          .sizes = {words},
          .strides = {4},
          .box = {box},
          .swizzle = ptx::Swizzle::kNone};
}

// Shared memory for the data of a test, one word of thread i.
inline uint32_t word(uint32_t i) { return ptx::dynamic_smem_base() + 1024 + 4 * i; }

}  // namespace test
