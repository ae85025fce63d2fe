// mbarrier objects: what tests and waits return during scripts of arrivals and bytes.
#pragma once

#include "case.h"

namespace longcat_ops::conformance {

// One step of a script, run by one thread. kCopy starts a bulk copy of `argument` bytes, which completes at some later
// time; kAwait waits for the phase of parity `argument`, kTry does so by try_wait alone.
enum Step : uint32_t { kInit, kArrive, kArriveN, kExpect, kArriveExpect, kCopy, kAwait, kTry, kTest };

// script [steps][2]: step, argument. out [steps]: for kTest, test_wait of parity 0 plus 2 * test_wait of parity 1; for
// kTry 1; else 0. The result of kTest is deterministic as long as no copy in flight could complete the phase.
LC_KERNEL LC_LAUNCH_BOUNDS(32, 1)
    script_kernel(const uint32_t* script, uint32_t steps, const uint8_t* source, uint32_t* out) {
  if (ptx::thread_index() != 0) return;
  const uint32_t bar = ptx::dynamic_smem_base(), buffer = bar + 128;
  uint32_t copied = 0;
  for (uint32_t i = 0; i < steps; ++i) {
    const uint32_t step = ptx::load_global(script + 2 * i), argument = ptx::load_global(script + 2 * i + 1);
    uint32_t answer = 0;
    if (step == kInit) {
      ptx::mbarrier_init(bar, argument);
      ptx::fence_mbarrier_init();
    } else if (step == kArrive) {
      ptx::mbarrier_arrive(bar);
    } else if (step == kArriveN) {
      ptx::mbarrier_arrive_n(bar, argument);
    } else if (step == kExpect) {
      ptx::mbarrier_expect_tx(bar, argument);
    } else if (step == kArriveExpect) {
      ptx::mbarrier_arrive_expect_tx(bar, argument);
    } else if (step == kCopy) {
      ptx::bulk_load(buffer + copied, source + copied, argument, bar);
      copied += argument;
    } else if (step == kAwait) {
      ptx::mbarrier_wait(bar, argument);
    } else if (step == kTry) {
      while (!ptx::mbarrier_try_wait(bar, argument)) {
      }
      answer = 1;
    } else {
      const uint32_t even = ptx::mbarrier_test_wait(bar, 0), odd = ptx::mbarrier_test_wait(bar, 1);
      answer = even + 2 * odd;
    }
    ptx::store_global(out + i, answer);
  }
}

// ISA, mbarrier: a phase completes when no arrival and no byte is pending; then the arrival count is reset and the next
// phase begins. test_wait of parity p is true when the current phase has the other parity.
inline std::vector<uint32_t> play(const std::vector<uint32_t>& script) {
  std::vector<uint32_t> answers;
  int64_t count = 0, pending = 0, bytes = 0, phase = 0;
  for (size_t i = 0; i < script.size(); i += 2) {
    const uint32_t step = script[i], argument = script[i + 1];
    uint32_t answer = 0;
    if (step == kInit) {
      count = pending = argument;
      bytes = phase = 0;
    }
    if (step == kExpect || step == kArriveExpect) bytes += argument;
    if (step == kCopy) bytes -= argument;
    if (step == kArrive || step == kArriveExpect) --pending;
    if (step == kArriveN) pending -= argument;
    if (pending == 0 && bytes == 0) {
      pending = count;
      ++phase;
    }
    if (step == kTry) answer = 1;
    if (step == kTest) answer = phase % 2 == 1 ? 1 : 2;
    answers.push_back(answer);
  }
  return answers;
}

inline void run_script(Machine& machine, const std::vector<uint32_t>& script) {
  const auto steps = static_cast<uint32_t>(script.size() / 2);
  auto* out = machine.output<uint32_t>(steps);
  const uint8_t* source = machine.input(random_values<uint8_t>(1024, 1));
  machine.launch(script_kernel, {1, 32, 2048}, static_cast<const uint32_t*>(machine.input(script)), steps, source, out);
  machine.expect(out, play(script));
}

// All 128 threads arrive and wait in 5 phases; between phases each reads what its neighbour wrote. out [5][128].
LC_KERNEL LC_LAUNCH_BOUNDS(128, 1) meet_kernel(uint32_t* out) {
  const uint32_t t = ptx::thread_index(), bar = ptx::dynamic_smem_base(), slots = bar + 128;
  if (t == 0) {
    ptx::mbarrier_init(bar, 128);
    ptx::fence_mbarrier_init();
  }
  ptx::sync_threads();
  for (uint32_t phase = 0; phase < 5; ++phase) {
    ptx::store_shared(slots + 4 * (128 * phase + t), 1000 * phase + t);
    ptx::mbarrier_arrive(bar);
    ptx::mbarrier_wait(bar, phase % 2);
    ptx::store_global(out + 128 * phase + t, ptx::load_shared<uint32_t>(slots + 4 * (128 * phase + (t + 1) % 128)));
  }
}

inline void meet(Machine& machine) {
  std::vector<uint32_t> expected;
  for (uint32_t phase = 0; phase < 5; ++phase)
    for (uint32_t t = 0; t < 128; ++t) expected.push_back(1000 * phase + (t + 1) % 128);
  auto* out = machine.output<uint32_t>(expected.size());
  machine.launch(meet_kernel, {1, 128, 4096}, out);
  machine.expect(out, expected);
}

inline void mbarrier_cases(Cases& cases) {
  auto add = [&](const char* name, const char* primitives, std::vector<uint32_t> script) {
    cases.add(name, primitives, [script](Machine& machine) { run_script(machine, script); });
  };
  const char* counting = "mbarrier_init mbarrier_arrive mbarrier_arrive_n mbarrier_test_wait fence_mbarrier_init";
  add("mbarrier/count_1", counting,
      {kInit, 1, kTest, 0, kArrive, 0, kTest, 0, kArrive, 0, kTest, 0, kArrive, 0, kTest, 0});
  add("mbarrier/count_5", counting,
      {kInit, 5, kTest,    0, kArrive, 0, kTest,    0, kArriveN, 3, kTest,   0, kArrive, 0,
       kTest, 0, kArriveN, 5, kTest,   0, kArriveN, 4, kTest,    0, kArrive, 0, kTest,   0});
  add("mbarrier/largest_count", counting,
      {kInit, (1 << 20) - 1, kTest, 0, kArriveN, (1 << 20) - 2, kTest, 0, kArrive, 0, kTest, 0, kArrive, 0, kTest, 0});
  add("mbarrier/bytes", "mbarrier_expect_tx mbarrier_arrive_expect_tx mbarrier_wait bulk_load",
      {kInit, 1, kExpect,       64,  kTest, 0, kArrive, 0,   kTest, 0, kCopy, 32, kTest,  0, kCopy, 32, kAwait, 0,
       kTest, 0, kArriveExpect, 128, kTest, 0, kCopy,   112, kTest, 0, kCopy, 16, kAwait, 1, kTest, 0});
  add("mbarrier/bytes_before_they_are_expected", "mbarrier_expect_tx mbarrier_test_wait",
      {kInit, 2, kArrive, 0, kCopy, 48, kTest, 0, kExpect, 48, kTest, 0, kArrive, 0, kAwait, 0, kTest, 0});
  add("mbarrier/try_wait", "mbarrier_try_wait",
      {kInit, 1, kTry, 1, kArrive, 0, kTry, 0, kArriveExpect, 256, kCopy, 256, kTry, 1, kTest, 0});
  cases.add("mbarrier/meet", "mbarrier_arrive mbarrier_wait fence_mbarrier_init", meet);
}

}  // namespace longcat_ops::conformance
