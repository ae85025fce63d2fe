// The tensor core unit of a warpgroup: instructions in order, executed later.
//
// Threads do not meet at wgmma instructions. The n-th instruction of every thread joins the n-th entry of the queue. An
// entry is issued when the last of the 128 threads arrives, and executed some time after that.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "emu/engine.h"

namespace longcat_ops::emu {

constexpr uint32_t kWarpgroup = 128;

// What all threads of each warp know at their n-th wgmma.fence.
struct FenceRecord {
  struct Warp {
    uint32_t threads = 0;
    VectorClock order;
    VectorClock async_shared;
  };
  std::array<Warp, 4> warps;
};

struct Accumulator {
  int n;
  std::vector<float> values;  // 64 rows of n
};

struct MmaInstruction {
  WgmmaCall call;  // of the first thread; pointers are not used
  bool register_a;
  Location where;
  std::shared_ptr<Accumulator> accumulator;
  std::shared_ptr<FenceRecord> fence;
  uint32_t arrived = 0;
  std::vector<std::array<uint32_t, 4>> a_fragments;  // of 128 threads, when A comes from registers
};

struct WgmmaThreadState {
  struct InFlight {
    float* registers;
    uint64_t last_instruction;
    std::shared_ptr<Accumulator> accumulator;
    Location where;
  };
  struct Fragment {
    const uint32_t* registers;
    std::array<uint32_t, 4> values;
    uint64_t instruction;
    Location where;
  };
  uint64_t fences = 0;
  uint64_t instructions = 0;
  bool fenced = false;  // since registers were last handed back
  std::shared_ptr<FenceRecord> fence;
  std::vector<InFlight> in_flight;
  std::vector<Fragment> fragments;
  std::vector<uint64_t> groups;  // instructions up to each commit
};

struct WarpgroupUnit : AsyncOperation {
  WarpgroupUnit(Cta* cta_, uint32_t index);

  std::shared_ptr<FenceRecord> fence_record(uint64_t number);  // counted from 1
  std::shared_ptr<MmaInstruction>& instruction(uint64_t number);
  void issue(MmaInstruction& instruction);
  bool step() override;  // executes one

  Cta* cta;
  uint32_t component;
  uint32_t first_time;
  uint64_t issued = 0;
  uint64_t executed = 0;
  bool queued = false;
  std::deque<std::shared_ptr<MmaInstruction>> instructions;  // executed + 1, ...
  std::deque<std::shared_ptr<FenceRecord>> fences;
  uint64_t first_fence = 1;
  std::vector<Thread*> waiters;
};

// The shared-memory address of element (row of M or N, k) of an operand.
uint32_t operand_address(uint64_t descriptor, bool mn_major, uint32_t element_bytes, uint32_t row, uint32_t k);

// Which element of the 64 x n tile a thread's i-th accumulator register holds.
inline uint32_t fragment_row(uint32_t thread, uint32_t i) {
  return 16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2 % 2);
}
inline uint32_t fragment_column(uint32_t thread, uint32_t i) { return 8 * (i / 4) + 2 * (thread % 4) + i % 2; }

}  // namespace longcat_ops::emu
