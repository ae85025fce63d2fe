// Thread indices, and how the threads of a warp, a block and a grid communicate and synchronise.
#pragma once

#include "case.h"

namespace longcat_ops::conformance {

// out [blocks][threads][5]
LC_KERNEL LC_LAUNCH_BOUNDS(96, 1) indices_kernel(uint32_t* out) {
  uint32_t* mine = out + 5 * (96 * ptx::block_index() + ptx::thread_index());
  ptx::store_global(mine, ptx::thread_index());
  ptx::store_global(mine + 1, ptx::block_index());
  ptx::store_global(mine + 2, ptx::grid_size());
  ptx::store_global(mine + 3, ptx::lane_index());
  ptx::store_global(mine + 4, ptx::warp_index());
}

inline void indices(Machine& machine) {
  std::vector<uint32_t> expected;
  for (uint32_t block = 0; block < 3; ++block)
    for (uint32_t thread = 0; thread < 96; ++thread)
      for (const uint32_t value : {thread, block, 3u, thread % 32, thread / 32}) expected.push_back(value);
  auto* out = machine.output<uint32_t>(expected.size());
  machine.launch(indices_kernel, {3, 96}, out);
  machine.expect(out, expected);
}

// out [2]: the base modulo 1024, and the last word of the block's shared memory, read back.
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) smem_base_kernel(uint32_t* out, uint32_t bytes) {
  const uint32_t base = ptx::dynamic_smem_base();
  if (ptx::lane_index() != 0) return;
  ptx::store_shared(base + bytes - 4, 0x12345678u);
  ptx::store_global(out, base % 1024);
  ptx::store_global(out + 1, ptx::load_shared<uint32_t>(base + bytes - 4));
}

inline void smem_base(Machine& machine) {
  auto* out = machine.output<uint32_t>(2);
  machine.launch(smem_base_kernel, {1, 32, 40960}, out, 40960u);
  machine.expect(out, std::vector<uint32_t>{0, 0x12345678});
}

// out [1]: how often in 64 readings the time went backwards, plus 1000 if it is zero.
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) globaltimer_kernel(uint32_t* out) {
  if (ptx::lane_index() != 0) return;
  uint32_t backwards = 0;
  uint64_t before = ptx::globaltimer_ns();
  for (int i = 0; i < 64; ++i) {
    const uint64_t now = ptx::globaltimer_ns();
    backwards += now < before;
    before = now;
  }
  ptx::store_global(out, backwards + (before == 0 ? 1000 : 0));
}

inline void globaltimer(Machine& machine) {
  auto* out = machine.output<uint32_t>(1);
  machine.launch(globaltimer_kernel, {}, out);
  machine.expect(out, std::vector<uint32_t>{0});
}

// out [4][2]: whether all threads of a block are on one multiprocessor, and whether its number is below 1024.
LC_KERNEL LC_LAUNCH_BOUNDS(64, 1) sm_index_kernel(uint32_t* out) {
  const uint32_t base = ptx::dynamic_smem_base(), sm = ptx::sm_index();
  if (ptx::thread_index() == 0) ptx::store_shared(base, sm);
  ptx::sync_threads();
  const bool alike = ptx::all(ptx::load_shared<uint32_t>(base) == sm);
  if (ptx::thread_index() != 63) return;
  ptx::store_global(out + 2 * ptx::block_index(), static_cast<uint32_t>(alike));
  ptx::store_global(out + 2 * ptx::block_index() + 1, static_cast<uint32_t>(sm < 1024));
}

inline void sm_index(Machine& machine) {
  auto* out = machine.output<uint32_t>(8);
  machine.launch(sm_index_kernel, {4, 64, 1024}, out);
  machine.expect(out, std::vector<uint32_t>(8, 1));
}

// out [warps][3]: the number of elected lanes, and whether the second and third call elect the same one.
LC_KERNEL LC_LAUNCH_BOUNDS(128, 1) elect_kernel(uint32_t* out) {
  const uint32_t first = ptx::ballot(ptx::elect_one());
  const uint32_t second = ptx::ballot(ptx::elect_one());
  const uint32_t third = ptx::ballot(ptx::elect_one());
  uint32_t lanes = 0;
  for (int i = 0; i < 32; ++i) lanes += first >> i & 1;
  if (ptx::lane_index() != 0) return;
  uint32_t* mine = out + 3 * ptx::warp_index();
  ptx::store_global(mine, lanes);
  ptx::store_global(mine + 1, static_cast<uint32_t>(second == first));
  ptx::store_global(mine + 2, static_cast<uint32_t>(third == first));
}

inline void elect(Machine& machine) {
  auto* out = machine.output<uint32_t>(12);
  machine.launch(elect_kernel, {1, 128}, out);
  machine.expect(out, std::vector<uint32_t>(12, 1));
}

// out [32 arguments][32 lanes][3 kinds]; a lane's value is its number times 0x01010101, the index source (a + 3 l)
// % 32.
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) shuffle_kernel(uint32_t* out) {
  const uint32_t lane = ptx::lane_index(), value = 0x01010101 * lane;
  for (int a = 0; a < 32; ++a) {
    uint32_t* mine = out + 3 * (32 * a + lane);
    ptx::store_global(mine, ptx::shuffle(value, static_cast<int>((a + 3 * lane) % 32)));
    ptx::store_global(mine + 1, ptx::shuffle_xor(value, a));
    ptx::store_global(mine + 2, ptx::shuffle_up(static_cast<int32_t>(value), a) + 0u);
  }
}

inline void shuffles(Machine& machine) {
  std::vector<uint32_t> expected;
  for (uint32_t a = 0; a < 32; ++a)
    for (uint32_t lane = 0; lane < 32; ++lane) {
      expected.push_back(0x01010101 * ((a + 3 * lane) % 32));
      expected.push_back(0x01010101 * (lane ^ a));
      expected.push_back(0x01010101 * (lane < a ? lane : lane - a));  // out of range: its own
    }
  auto* out = machine.output<uint32_t>(expected.size());
  machine.launch(shuffle_kernel, {}, out);
  machine.expect(out, expected);
}

// masks [count]: the predicates of the lanes; out [count][32 lanes][2]: ballot, any + 2 all.
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) vote_kernel(const uint32_t* masks, uint32_t count, uint32_t* out) {
  for (uint32_t i = 0; i < count; ++i) {
    const bool mine = (ptx::load_global(masks + i) >> ptx::lane_index() & 1) != 0;
    uint32_t* to = out + 2 * (32 * i + ptx::lane_index());
    ptx::store_global(to, ptx::ballot(mine));
    const uint32_t any = ptx::any(mine), all = ptx::all(mine);
    ptx::store_global(to + 1, any + 2 * all);
  }
}

inline void votes(Machine& machine) {
  const std::vector<uint32_t> masks = {0, ~0u, 1, 0x80000000, 0x7fffffff, 0xfffffffe, 0x0f0f0f0f, 0x12345678};
  std::vector<uint32_t> expected;
  for (const uint32_t mask : masks)
    for (int lane = 0; lane < 32; ++lane) {
      expected.push_back(mask);
      expected.push_back((mask != 0) + 2 * (mask == ~0u));
    }
  auto* out = machine.output<uint32_t>(expected.size());
  machine.launch(vote_kernel, {}, static_cast<const uint32_t*>(machine.input(masks)),
                 static_cast<uint32_t>(masks.size()), out);
  machine.expect(out, expected);
}

// values [count][32 lanes]; out [count][32 lanes][4]: maximum, minimum, mask of lanes with the same value, its count.
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) compare_kernel(const uint32_t* values, uint32_t count, uint32_t* out) {
  for (uint32_t i = 0; i < count; ++i) {
    const uint32_t at = 32 * i + ptx::lane_index(), value = ptx::load_global(values + at);
    ptx::store_global(out + 4 * at, ptx::redux_max(value));
    ptx::store_global(out + 4 * at + 1, ptx::redux_min(value));
    const uint32_t alike = ptx::match_any(value);
    ptx::store_global(out + 4 * at + 2, alike);
    ptx::store_global(out + 4 * at + 3, ptx::popcount(alike));
  }
}

// Warps of values below 1, 2, 5 and 100, from 0x7fffffff up (compared unsigned), and of any bits: from all equal to all
// different.
inline void comparisons(Machine& machine) {
  std::vector<uint32_t> values, expected;
  Numbers numbers(11);
  for (const uint32_t range : {1, 2, 5, 100, 3, 0})
    for (int lane = 0; lane < 32; ++lane)
      values.push_back(range == 0 ? numbers.next() : numbers.below(range) + (range == 3 ? 0x7fffffff : 0));
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t* warp = values.data() + i / 32 * 32;
    uint32_t largest = 0, smallest = ~0u, alike = 0, number = 0;
    for (int lane = 0; lane < 32; ++lane) {
      largest = warp[lane] > largest ? warp[lane] : largest;
      smallest = warp[lane] < smallest ? warp[lane] : smallest;
      if (warp[lane] == values[i]) alike |= 1u << lane, ++number;
    }
    expected.insert(expected.end(), {largest, smallest, alike, number});
  }
  auto* out = machine.output<uint32_t>(expected.size());
  machine.launch(compare_kernel, {}, static_cast<const uint32_t*>(machine.input(values)),
                 static_cast<uint32_t>(values.size() / 32), out);
  machine.expect(out, expected);
}

// Every thread passes its value to the next thread of its warp (WARP) or of the block, 8 times; out [threads].
template <bool WARP>
LC_KERNEL LC_LAUNCH_BOUNDS(128, 1) hand_on_kernel(uint32_t* out) {
  const uint32_t t = ptx::thread_index(), base = ptx::dynamic_smem_base();
  const uint32_t next = WARP ? t / 32 * 32 + (t + 1) % 32 : (t + 1) % 128;
  uint32_t value = t;
  for (int i = 0; i < 8; ++i) {
    ptx::store_shared(base + 4 * next, value);
    WARP ? ptx::warp_sync() : ptx::sync_threads();
    value = ptx::load_shared<uint32_t>(base + 4 * t);
    WARP ? ptx::warp_sync() : ptx::sync_threads();
  }
  ptx::store_global(out + t, value);
}

template <bool WARP>
void hand_on(Machine& machine) {
  std::vector<uint32_t> expected;
  for (uint32_t t = 0; t < 128; ++t) expected.push_back(WARP ? t / 32 * 32 + (t + 24) % 32 : (t + 120) % 128);
  auto* out = machine.output<uint32_t>(128);
  machine.launch(hand_on_kernel<WARP>, {1, 128, 1024}, out);
  machine.expect(out, expected);
}

// Warps 0 and 1 produce, 2 and 3 consume, over barriers 1 to 15; out [15][64].
LC_KERNEL LC_LAUNCH_BOUNDS(128, 1) named_barrier_kernel(uint32_t* out) {
  const uint32_t t = ptx::thread_index(), base = ptx::dynamic_smem_base();
  for (uint32_t id = 1; id < 16; ++id) {
    const uint32_t slot = base + 4 * 64 * (id - 1);
    if (t < 64) {
      ptx::store_shared(slot + 4 * t, 1000 * id + t);
      ptx::named_barrier_arrive(id, 128);
    } else {
      ptx::named_barrier_sync(id, 128);
      ptx::store_global(out + 64 * (id - 1) + t - 64, ptx::load_shared<uint32_t>(slot + 4 * (127 - t)));
    }
  }
}

inline void named_barriers(Machine& machine) {
  std::vector<uint32_t> expected;
  for (uint32_t id = 1; id < 16; ++id)
    for (uint32_t i = 0; i < 64; ++i) expected.push_back(1000 * id + 63 - i);
  auto* out = machine.output<uint32_t>(expected.size());
  machine.launch(named_barrier_kernel, {1, 128, 4096}, out);
  machine.expect(out, expected);
}

// 384 threads start with 168 registers each; one warpgroup releases registers, two acquire them. out [384]: a value
// kept across the change.
LC_KERNEL LC_LAUNCH_BOUNDS(384, 1) setmaxnreg_kernel(const uint32_t* in, uint32_t* out) {
  const uint32_t t = ptx::thread_index(), value = ptx::load_global(in + t);
  if (ptx::warp_index() < 4) {
    ptx::setmaxnreg_dec<40>();
    ptx::store_global(out + t, value + 1);
  } else {
    ptx::setmaxnreg_inc<232>();
    ptx::store_global(out + t, value + 2);
  }
}

inline void setmaxnreg(Machine& machine) {
  const auto in = random_values<uint32_t>(384, 5);
  std::vector<uint32_t> expected;
  for (uint32_t t = 0; t < 384; ++t) expected.push_back(in[t] + (t < 128 ? 1 : 2));
  auto* out = machine.output<uint32_t>(384);
  machine.launch(setmaxnreg_kernel, {1, 384}, static_cast<const uint32_t*>(machine.input(in)), out);
  machine.expect(out, expected);
}

// FIRST lets its successor start, then writes `between`; the second waits, then copies it reversed. 4 blocks of 64.
template <bool FIRST>
LC_KERNEL LC_LAUNCH_BOUNDS(64, 1) dependent_kernel(uint32_t* between, uint32_t* out) {
  const uint32_t i = 64 * ptx::block_index() + ptx::thread_index();
  if (FIRST) {
    ptx::grid_dependency_launch();
    ptx::store_global(between + i, 7 * i);
  } else {
    ptx::grid_dependency_wait();
    ptx::store_global(out + i, ptx::load_global(between + 255 - i));
  }
}

inline void dependent_launch(Machine& machine) {
  std::vector<uint32_t> expected;
  for (uint32_t i = 0; i < 256; ++i) expected.push_back(7 * (255 - i));
  auto *between = machine.output<uint32_t>(256), *out = machine.output<uint32_t>(256);
  machine.launch(dependent_kernel<true>, {4, 64}, between, out);
  machine.launch(dependent_kernel<false>, {4, 64, 0, true}, between, out);
  machine.expect(out, expected);
}

inline void thread_cases(Cases& cases) {
  cases.add("thread/indices", "thread_index block_index grid_size lane_index warp_index", indices);
  cases.add("thread/smem_base", "dynamic_smem_base", smem_base, "the address itself is the machine's: modulo 1024");
  cases.add("thread/globaltimer", "globaltimer_ns", globaltimer, "only that time does not go back");
  cases.add("thread/sm_index", "sm_index", sm_index, "the number is the machine's: below 1024, one for a block");
  cases.add("thread/elect", "elect_one", elect, "the lane is the machine's choice: how many, and always the same");
  cases.add("thread/shuffles", "shuffle shuffle_xor shuffle_up", shuffles);
  cases.add("thread/votes", "ballot any all", votes);
  cases.add("thread/comparisons", "redux_max redux_min match_any popcount", comparisons);
  cases.add("thread/warp_sync", "warp_sync", hand_on<true>);
  cases.add("thread/sync_threads", "sync_threads", hand_on<false>);
  cases.add("thread/named_barriers", "named_barrier_sync named_barrier_arrive", named_barriers);
  cases.add("thread/setmaxnreg", "setmaxnreg_inc setmaxnreg_dec", setmaxnreg, "that it runs through");
  cases.add("thread/dependent_launch", "grid_dependency_launch grid_dependency_wait", dependent_launch);
}

}  // namespace longcat_ops::conformance
