// What launches of a stream see of each other's writes, and a kernel that only occupies its multiprocessor.
#pragma once

#include "case.h"

namespace longcat_ops::conformance {

constexpr uint32_t kSeenBlocks = 8, kSeenThreads = 128, kSeenWords = 4096;

// data [kSeenWords] becomes value, value + 1, ...
LC_KERNEL LC_LAUNCH_BOUNDS(kSeenThreads, 1) write_words_kernel(uint32_t* data, uint32_t value) {
  ptx::grid_dependency_wait();  // earlier launches may still be reading data
  ptx::grid_dependency_launch();
  const uint32_t first = kSeenThreads * ptx::block_index() + ptx::thread_index();
  for (uint32_t i = first; i < kSeenWords; i += kSeenBlocks * kSeenThreads) ptx::store_global(data + i, value + i);
}

// Waits for its predecessor, then lets its successor start, then does unrelated work.
LC_KERNEL LC_LAUNCH_BOUNDS(kSeenThreads, 1) pass_on_kernel(uint32_t* other) {
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  ptx::store_global(other + kSeenThreads * ptx::block_index() + ptx::thread_index(), 1u);
}

// Adds to wrong [1] the number of words that differ from what write_words_kernel wrote. Reads them before it waits.
LC_KERNEL LC_LAUNCH_BOUNDS(kSeenThreads, 1) read_early_kernel(const uint32_t* data, uint32_t value, uint32_t* wrong) {
  uint32_t mine = 0;
  const uint32_t first = kSeenThreads * ptx::block_index() + ptx::thread_index();
  for (uint32_t i = first; i < kSeenWords; i += kSeenBlocks * kSeenThreads)
    mine += ptx::load_global(data + i) != value + i;
  ptx::grid_dependency_wait();
  ptx::grid_dependency_launch();
  if (mine != 0) ptx::red_add_relaxed_gpu(wrong, mine);
}

// A kernel's writes are visible two launches later, even before the wait, if the launch between has waited. Repeats it
// `rounds` times over the same memory, of which multiprocessors may hold stale copies. Returns the wrong words' count.
inline uint32_t* see_two_back(Machine& machine, uint32_t rounds) {
  auto* data = machine.output<uint32_t>(kSeenWords);
  auto* other = machine.output<uint32_t>(kSeenBlocks * kSeenThreads);
  auto* wrong = machine.input(std::vector<uint32_t>{0});
  const Launch launch{kSeenBlocks, kSeenThreads, 0, true};
  for (uint32_t round = 0; round < rounds; ++round) {
    const uint32_t value = 0x10001u * round;
    machine.launch(write_words_kernel, launch, data, value);
    machine.launch(pass_on_kernel, launch, other);
    machine.launch(read_early_kernel, launch, static_cast<const uint32_t*>(data), value, wrong);
  }
  return wrong;
}

inline void seen_two_back(Machine& machine) {
  const uint32_t* wrong = see_two_back(machine, 4);
  machine.expect(wrong, std::vector<uint32_t>{0});
}

// One thread a block spins until `stop` is not 0, or for `limit_ns`. started [blocks] becomes 1 when it runs;
// places [blocks][2]: its multiprocessor, and 1 if it was stopped or 2 if its time ran out.
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1)
    stay_kernel(const uint32_t* stop, uint64_t limit_ns, uint32_t* started, uint32_t* places) {
  if (ptx::thread_index() != 0) return;
  const uint32_t block = ptx::block_index();
  ptx::store_global(places + 2 * block, ptx::sm_index());
  const uint64_t begin = ptx::globaltimer_ns();
  ptx::store_relaxed_sys(started + block, 1u);
  bool stopped = false;
  while (!(stopped = ptx::load_relaxed_sys(stop) != 0) && ptx::globaltimer_ns() - begin < limit_ns) ptx::spin_pause();
  ptx::store_global(places + 2 * block + 1, stopped ? 1u : 2u);
}

// One block has its stop flag set before it starts; for the other the flag stays 0.
inline void stay(Machine& machine) {
  for (const uint32_t told : {1u, 0u}) {
    auto *started = machine.output<uint32_t>(1), *places = machine.output<uint32_t>(2);
    machine.launch(stay_kernel, {1, 32, 1024}, static_cast<const uint32_t*>(machine.input(std::vector<uint32_t>{told})),
                   uint64_t{20000}, started, places);
    machine.expect(started, std::vector<uint32_t>{1});
    machine.expect(places + 1, std::vector<uint32_t>{told != 0 ? 1u : 2u});
  }
}

inline void launch_cases(Cases& cases) {
  cases.add("launches/seen_two_back", "grid_dependency_wait grid_dependency_launch", seen_two_back);
  cases.add("launches/stay", "load_relaxed_sys store_relaxed_sys globaltimer_ns spin_pause", stay,
            "that it ends when told, or by itself");
}

}  // namespace longcat_ops::conformance
