// The conformance library's C ABI, the same over the emulator (library.cpp) and for a GPU (library.cu).
#pragma once

#include "box_ring.cuh"
#include "bulk.cuh"
#include "cluster.cuh"
#include "convert.cuh"
#include "launches.cuh"
#include "math.cuh"
#include "matrix.cuh"
#include "mbarrier.cuh"
#include "memory.cuh"
#include "multicast.cuh"
#include "thread.cuh"
#include "tma.cuh"
#include "wgmma_layouts.cuh"
#include "wgmma_sums.cuh"

namespace longcat_ops::conformance {

// Every chapter's cases, in the order in which they run.
inline const std::vector<Case>& all_cases() {
  static const std::vector<Case> all = [] {
    Cases cases;
    thread_cases(cases);
    launch_cases(cases);
    memory_cases(cases);
    mbarrier_cases(cases);
    tma_cases(cases);
    box_ring_cases(cases);
    bulk_cases(cases);
    matrix_cases(cases);
    cluster_cases(cases);
    multicast_cases(cases);
    wgmma_cases(cases);
    sum_cases(cases);
    convert_cases(cases);
    math_cases(cases);
    return cases.all();
  }();
  return all;
}

inline Result last_result;
inline std::string last_error;

}  // namespace longcat_ops::conformance

#define LC_EXPORT extern "C" __attribute__((visibility("default")))

LC_EXPORT int conformance_count() { return static_cast<int>(longcat_ops::conformance::all_cases().size()); }
LC_EXPORT const char* conformance_name(int i) { return longcat_ops::conformance::all_cases()[i].name.c_str(); }
LC_EXPORT const char* conformance_primitives(int i) {
  return longcat_ops::conformance::all_cases()[i].primitives.c_str();
}
LC_EXPORT const char* conformance_note(int i) { return longcat_ops::conformance::all_cases()[i].note.c_str(); }

// Runs case i; returns 0 if it produced its outputs, right or wrong. A GPU ignores seed and policy.
LC_EXPORT int conformance_run(int i, uint64_t seed, int policy) {
  using namespace longcat_ops::conformance;
  last_result = {};
  last_error.clear();
  try {
    Machine machine(seed, policy);
    all_cases()[i].run(machine);
    last_result = std::move(machine.result);
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
    return 1;
  }
}

LC_EXPORT const char* conformance_error() { return longcat_ops::conformance::last_error.c_str(); }
// Outputs of the last run and the expected outputs, equally many bytes.
LC_EXPORT size_t conformance_size() { return longcat_ops::conformance::last_result.actual.size(); }
LC_EXPORT const uint8_t* conformance_actual() { return longcat_ops::conformance::last_result.actual.data(); }
LC_EXPORT const uint8_t* conformance_expected() { return longcat_ops::conformance::last_result.expected.data(); }
