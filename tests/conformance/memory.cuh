// Loads, stores and reductions, and the accesses and fences that order them between threads and blocks.
#pragma once

#include "case.h"

namespace longcat_ops::conformance {

// Thread t of 64 writes element t to shared memory and element 63 - t from there to out [0]; out [1]: load_global_nc.
template <class T>
LC_KERNEL LC_LAUNCH_BOUNDS(64, 1) move_kernel(const T* in, T* out) {
  const uint32_t t = ptx::thread_index(), base = ptx::dynamic_smem_base(), bytes = sizeof(T);
  ptx::prefetch_global_l2(in + t);
  ptx::store_shared(base + bytes * t, ptx::load_global(in + t));
  ptx::sync_threads();
  ptx::store_global(out + t, ptx::load_shared<T>(base + bytes * (63 - t)));
  ptx::store_global(out + 64 + t, ptx::load_global_nc(in + (t + 1) % 64));
}

template <class T>
void move(Machine& machine) {
  const auto bytes = random_values<uint8_t>(64 * sizeof(T), sizeof(T));
  std::vector<T> in(64), expected(128);
  memcpy(static_cast<void*>(in.data()), bytes.data(), bytes.size());
  for (uint32_t t = 0; t < 64; ++t) {
    expected[t] = in[63 - t];
    expected[64 + t] = in[(t + 1) % 64];
  }
  auto* out = machine.output<T>(128);
  machine.launch(move_kernel<T>, {1, 64, 1024}, static_cast<const T*>(machine.input(in)), out);
  machine.expect(out, expected);
}

// Reads in [4] by every strong load and writes out [4][4] by every strong store.
template <class T>
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) strong_kernel(const T* in, T* out) {
  if (ptx::lane_index() != 0) return;
  const T x[4] = {ptx::load_relaxed_gpu(in), ptx::load_relaxed_sys(in + 1), ptx::load_acquire_gpu(in + 2),
                  ptx::load_acquire_sys(in + 3)};
  LC_UNROLL
  for (int i = 0; i < 4; ++i) {
    ptx::store_relaxed_gpu(out + 4 * i, x[i]);
    ptx::store_relaxed_sys(out + 4 * i + 1, x[i]);
    ptx::store_release_gpu(out + 4 * i + 2, x[i]);
    ptx::store_release_sys(out + 4 * i + 3, x[i]);
  }
}

template <class T>
void strong(Machine& machine) {
  std::vector<T> in, expected;
  for (const uint64_t bits : {0x80000001fedcba98u, 0xffffffff7fffffffu, 0x0123456789abcdefu, 0x8000000000000000u})
    in.push_back(static_cast<T>(bits));
  for (const T value : in) expected.insert(expected.end(), 4, value);
  auto* out = machine.output<T>(16);
  machine.launch(strong_kernel<T>, {}, static_cast<const T*>(machine.input(in)), out);
  machine.expect(out, expected);
}

// 3 blocks of 96 threads add to sums [5]; marks [288] count how often atomic_add returned each value.
LC_KERNEL LC_LAUNCH_BOUNDS(96, 1) add_kernel(uint32_t* sums, uint32_t* marks) {
  const uint32_t i = 96 * ptx::block_index() + ptx::thread_index();
  ptx::red_add_relaxed_gpu(sums, i);
  ptx::red_add_release_gpu(sums + 1, i + 1);
  ptx::red_add_relaxed_sys(sums + 2, 0x10000000u + i);
  ptx::red_add_release_sys(sums + 3, ~i);
  ptx::red_add_relaxed_gpu(marks + ptx::atomic_add_acq_rel_gpu(sums + 4, 1), 1);
}

inline void additions(Machine& machine) {
  constexpr uint32_t kThreads = 288, kSum = kThreads * (kThreads - 1) / 2;
  auto* sums = machine.input(std::vector<uint32_t>(5, 0));
  auto* marks = machine.input(std::vector<uint32_t>(kThreads, 0));
  machine.launch(add_kernel, {3, 96}, sums, marks);
  machine.expect(
      sums, std::vector<uint32_t>{kSum, kSum + kThreads, kThreads * 0x10000000u + kSum, 0 - kSum - kThreads, kThreads});
  machine.expect(marks, std::vector<uint32_t>(kThreads, 1));
}

// How a flag publishes data: release and acquire at this scope, or a fence and relaxed accesses.
enum class Handover { kGpu, kSys, kFenceCta, kFenceCluster, kFenceGpu, kFenceSys, kRedGpu, kRedSys, kAtomic };

template <Handover HOW>
LC_DEVICE void fence() {
  if constexpr (HOW == Handover::kFenceCta) ptx::fence_acq_rel_cta();
  if constexpr (HOW == Handover::kFenceCluster) ptx::fence_acq_rel_cluster();
  if constexpr (HOW == Handover::kFenceGpu) ptx::fence_acq_rel_gpu();
  if constexpr (HOW == Handover::kFenceSys) ptx::fence_acq_rel_sys();
}

template <Handover HOW>
LC_DEVICE void raise(uint32_t* flag) {
  if constexpr (HOW == Handover::kGpu) ptx::store_release_gpu(flag, 1u);
  if constexpr (HOW == Handover::kSys) ptx::store_release_sys(flag, 1u);
  if constexpr (HOW == Handover::kRedGpu) ptx::red_add_release_gpu(flag, 1);
  if constexpr (HOW == Handover::kRedSys) ptx::red_add_release_sys(flag, 1);
  if constexpr (HOW == Handover::kAtomic) ptx::atomic_add_acq_rel_gpu(flag, 1);
  fence<HOW>();
  if constexpr (HOW == Handover::kFenceSys) ptx::store_relaxed_sys(flag, 1u);
  if constexpr (HOW == Handover::kFenceCta || HOW == Handover::kFenceCluster || HOW == Handover::kFenceGpu)
    ptx::store_relaxed_gpu(flag, 1u);
}

template <Handover HOW>
LC_DEVICE bool raised(const uint32_t* flag) {
  if constexpr (HOW == Handover::kSys || HOW == Handover::kRedSys) return ptx::load_acquire_sys(flag) != 0;
  if constexpr (HOW == Handover::kGpu || HOW == Handover::kRedGpu || HOW == Handover::kAtomic)
    return ptx::load_acquire_gpu(flag) != 0;
  const bool up = HOW == Handover::kFenceSys ? ptx::load_relaxed_sys(flag) != 0 : ptx::load_relaxed_gpu(flag) != 0;
  fence<HOW>();
  return up;
}

// The writer writes data [32] and raises the flag; the reader (another block, or with kFenceCta and kFenceCluster
// another warp) waits for it and copies the data. The wait is bounded: if the flag never shows, the result is wrong.
template <Handover HOW>
LC_KERNEL LC_LAUNCH_BOUNDS(64, 1) hand_over_kernel(uint32_t* data, uint32_t* flag, uint32_t* out) {
  constexpr bool kOneBlock = HOW == Handover::kFenceCta || HOW == Handover::kFenceCluster;
  const uint32_t role = kOneBlock ? ptx::warp_index() : ptx::block_index();
  if (!kOneBlock && ptx::warp_index() != 0) return;
  if (ptx::lane_index() != 0) return;
  if (role == 0) {
    for (uint32_t i = 0; i < 32; ++i) ptx::store_global(data + i, 3 * i + 1);
    raise<HOW>(flag);
  } else {
    constexpr uint32_t kPolls = 1 << 20;
    for (uint32_t i = 0; i < kPolls && !raised<HOW>(flag); ++i) ptx::spin_pause();
    for (uint32_t i = 0; i < 32; ++i) ptx::store_global(out + i, ptx::load_global(data + 31 - i));
  }
}

template <Handover HOW>
void hand_over(Machine& machine) {
  std::vector<uint32_t> expected;
  for (uint32_t i = 0; i < 32; ++i) expected.push_back(3 * (31 - i) + 1);
  constexpr bool kOneBlock = HOW == Handover::kFenceCta || HOW == Handover::kFenceCluster;
  auto *data = machine.output<uint32_t>(32), *out = machine.output<uint32_t>(32);
  auto* flag = machine.input(std::vector<uint32_t>{0});
  machine.launch(hand_over_kernel<HOW>, {kOneBlock ? 1u : 2u, 64}, data, flag, out);
  machine.expect(out, expected);
}

// Two blocks of 32 threads send each other lines of data and flag, 8 or 16 bytes: in [2][32] goes to the other block's
// slots [2][32], and that block copies its lines to out [2][32]. A line has arrived when its flags are 1.
template <class T>
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1) lines_kernel(const T* in, T* slots, T* out) {
  const uint32_t t = ptx::thread_index(), mine = 32 * ptx::block_index() + t,
                 theirs = 32 * (1 - ptx::block_index()) + t;
  const T sent = ptx::load_global(in + mine);
  constexpr bool kTwoWords = sizeof(T) == 16;
  if constexpr (kTwoWords) {
    ptx::store_relaxed_sys_two_words(slots + theirs, sent);
  } else {
    ptx::store_relaxed_sys(slots + theirs, sent);
  }
  constexpr uint32_t kPolls = 1 << 20;
  T came{};
  for (uint32_t i = 0; i < kPolls; ++i) {
    bool there;
    if constexpr (kTwoWords) {
      came = ptx::load_relaxed_sys_two_words(slots + mine);
      there = came.y == 1 && came.w == 1;
    } else {
      came = ptx::load_relaxed_sys(slots + mine);
      there = came.y == 1;
    }
    if (there) break;
    ptx::spin_pause();
  }
  ptx::store_global(out + mine, came);
}

template <class T>
void lines(Machine& machine) {
  constexpr uint32_t kWords = sizeof(T) / 4;
  auto words = random_values<uint32_t>(64 * kWords, kWords);
  for (uint32_t i = 1; i < words.size(); i += 2) words[i] = 1;
  std::vector<T> in(64), expected(64);
  memcpy(static_cast<void*>(in.data()), words.data(), 4 * words.size());
  for (uint32_t i = 0; i < 64; ++i) expected[i] = in[(i + 32) % 64];
  auto* out = machine.output<T>(64);
  machine.launch(lines_kernel<T>, {2, 32}, static_cast<const T*>(machine.input(in)), machine.input(std::vector<T>(64)),
                 out);
  machine.expect(out, expected);
}

inline void memory_cases(Cases& cases) {
  const char* moves = "load_shared store_shared load_global prefetch_global_l2 store_global load_global_nc";
  cases.add("memory/move_1", moves, move<uint8_t>);
  cases.add("memory/move_2", moves, move<uint16_t>);
  cases.add("memory/move_4", moves, move<float>);
  cases.add("memory/move_8", moves, move<ptx::Vec8>);
  cases.add("memory/move_16", moves, move<ptx::Vec16>);
  const char* strong_accesses =
      "load_relaxed_gpu load_relaxed_sys load_acquire_gpu load_acquire_sys "
      "store_relaxed_gpu store_relaxed_sys store_release_gpu store_release_sys";
  cases.add("memory/strong_u32", strong_accesses, strong<uint32_t>);
  cases.add("memory/strong_i32", strong_accesses, strong<int32_t>);
  cases.add("memory/strong_u64", strong_accesses, strong<uint64_t>);
  cases.add("memory/additions",
            "red_add_relaxed_gpu red_add_release_gpu red_add_relaxed_sys red_add_release_sys atomic_add_acq_rel_gpu",
            additions, "the order is the machine's: the sums, and that each old value came once");
  const char* note = "that the data were there; one run proves no order";
  cases.add("memory/hand_over_gpu", "store_release_gpu load_acquire_gpu spin_pause", hand_over<Handover::kGpu>, note);
  cases.add("memory/hand_over_sys", "store_release_sys load_acquire_sys spin_pause", hand_over<Handover::kSys>, note);
  cases.add("memory/hand_over_fence_cta", "fence_acq_rel_cta", hand_over<Handover::kFenceCta>, note);
  cases.add("memory/hand_over_fence_cluster", "fence_acq_rel_cluster", hand_over<Handover::kFenceCluster>, note);
  cases.add("memory/hand_over_fence_gpu", "fence_acq_rel_gpu", hand_over<Handover::kFenceGpu>, note);
  cases.add("memory/hand_over_fence_sys", "fence_acq_rel_sys", hand_over<Handover::kFenceSys>, note);
  cases.add("memory/hand_over_red_gpu", "red_add_release_gpu", hand_over<Handover::kRedGpu>, note);
  cases.add("memory/hand_over_red_sys", "red_add_release_sys", hand_over<Handover::kRedSys>, note);
  cases.add("memory/lines_8", "load_relaxed_sys store_relaxed_sys", lines<ptx::Vec8>, note);
  cases.add("memory/lines_16", "load_relaxed_sys_two_words store_relaxed_sys_two_words", lines<ptx::Vec16>, note);
  cases.add("memory/hand_over_atomic", "atomic_add_acq_rel_gpu", hand_over<Handover::kAtomic>, note);
}

}  // namespace longcat_ops::conformance
