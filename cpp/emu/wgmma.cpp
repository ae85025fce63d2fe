#include "emu/wgmma.h"

#include <algorithm>
#include <bit>

namespace longcat_ops::emu {
namespace {

// Fills accumulator registers while an instruction that writes them is in flight. NOTE: a signalling NaN, because any
// arithmetic makes it quiet; a quiet one would survive `acc += 1`.
constexpr uint32_t kPoison = 0x7fadbeefu;

constexpr const char* kTouched = "an accumulator register was modified while wgmma was in flight";

WarpgroupUnit& unit_of(const Thread& thread, const Location& where) {
  Cta& cta = *thread.cta;
  if (cta.threads.size() < (thread.index / kWarpgroup + 1) * kWarpgroup)
    fail("wgmma", "the warpgroup is not complete", where);
  return *cta.warpgroups[thread.index / kWarpgroup];
}

bool same_bits(const WgmmaCall& x, const WgmmaCall& y) {
  return x.n == y.n && x.bf16 == y.bf16 && x.mn_major_a == y.mn_major_a && x.mn_major_b == y.mn_major_b && x.a == y.a &&
         x.b == y.b && x.accumulate == y.accumulate && (x.a_registers == nullptr) == (y.a_registers == nullptr);
}

// The accumulator registers: values go in when a chain starts; the poison must be untouched when the chain goes on.
void enter_accumulator(Thread& self, WarpgroupUnit& unit, MmaInstruction& instruction, const WgmmaCall& call,
                       uint64_t number, const Location& where) {
  WgmmaThreadState& state = *self.wgmma;
  const uint32_t lane = self.index % kWarpgroup;
  auto chain = std::find_if(state.in_flight.begin(), state.in_flight.end(),
                            [&](const auto& entry) { return entry.registers == call.accumulator; });
  const uint32_t count = uint32_t(call.n) / 2;
  if (chain != state.in_flight.end()) {
    if (chain->accumulator->n != call.n) fail("wgmma", "an accumulator in flight is used with another shape", where);
    if (!instruction.accumulator) instruction.accumulator = chain->accumulator;
    for (uint32_t i = 0; i < count; ++i)
      if (std::bit_cast<uint32_t>(call.accumulator[i]) != kPoison) fail("wgmma", kTouched, where);
    chain->last_instruction = number;
  } else {
    if (!state.fenced) fail("wgmma-fence", "wgmma without wgmma.fence since the registers were last accessed", where);
    if (!instruction.accumulator) {
      instruction.accumulator = std::make_shared<Accumulator>();
      instruction.accumulator->n = call.n;
      instruction.accumulator->values.assign(64 * call.n, 0.0f);
    }
    float* values = instruction.accumulator->values.data();
    for (uint32_t i = 0; i < count; ++i) {
      if (call.accumulate) values[fragment_row(lane, i) * call.n + fragment_column(lane, i)] = call.accumulator[i];
      call.accumulator[i] = std::bit_cast<float>(kPoison);
    }
    state.in_flight.push_back({call.accumulator, number, instruction.accumulator, where});
    chain = state.in_flight.end() - 1;
  }
  if (chain->accumulator != instruction.accumulator)
    fail("divergent", "threads of warpgroup " + std::to_string(unit.component) + " use different accumulators", where);
}

// Hands the registers of finished instructions back to the thread.
void retire_accumulators(Thread& self, uint64_t target, const Location& where) {
  WgmmaThreadState& state = *self.wgmma;
  const uint32_t lane = self.index % kWarpgroup;
  std::erase_if(state.in_flight, [&](const WgmmaThreadState::InFlight& entry) {
    if (entry.last_instruction > target) return false;
    const int n = entry.accumulator->n;
    for (uint32_t i = 0; i < uint32_t(n) / 2; ++i) {
      if (std::bit_cast<uint32_t>(entry.registers[i]) != kPoison) fail("wgmma", kTouched, where);
      entry.registers[i] = entry.accumulator->values[fragment_row(lane, i) * n + fragment_column(lane, i)];
    }
    state.fenced = false;
    return true;
  });
}

void retire_fragments(WgmmaThreadState& state, uint64_t target, const Location& where) {
  std::erase_if(state.fragments, [&](const WgmmaThreadState::Fragment& fragment) {
    if (fragment.instruction > target) return false;
    if (!std::equal(fragment.values.begin(), fragment.values.end(), fragment.registers))
      fail("wgmma", "a register of A was modified while the wgmma at " + describe(fragment.where) + " was in flight",
           where);
    return true;
  });
}

}  // namespace

void wgmma_fence(const Location& where) {
  Thread& self = this_thread();
  WgmmaThreadState& state = *self.wgmma;
  state.fenced = true;
  state.fence = unit_of(self, where).fence_record(++state.fences);
  FenceRecord::Warp& warp = state.fence->warps[self.warp() % 4];
  if (engine().settings.detectors) {
    // NOTE: the unit reads operands for whole warps, so only what every lane knows is ordered before.
    if (warp.threads == 0) {
      warp.order = self.clock.order;
      warp.async_shared = self.clock.async_shared;
    } else {
      warp.order.meet(self.clock.order);
      warp.async_shared.meet(self.clock.async_shared);
    }
  }
  ++warp.threads;
}

void wgmma(const WgmmaCall& call, const Location& where) {
  Thread& self = this_thread();
  WarpgroupUnit& unit = unit_of(self, where);
  WgmmaThreadState& state = *self.wgmma;
  if (!state.fence) fail("wgmma-fence", "wgmma before any wgmma.fence", where);
  const uint64_t number = ++state.instructions;
  std::shared_ptr<MmaInstruction>& entry = unit.instruction(number);
  if (!entry) {
    entry = std::make_shared<MmaInstruction>();
    entry->call = call;
    entry->register_a = call.a_registers != nullptr;
    entry->where = where;
    entry->fence = state.fence;
    if (entry->register_a) entry->a_fragments.resize(kWarpgroup);
  } else if (entry->where.line() != where.line() || entry->fence != state.fence) {
    fail("divergent",
         "threads of a warpgroup are at different wgmma instructions, " + describe(entry->where) + " and here", where);
  } else if (!same_bits(entry->call, call)) {
    fail("divergent", "descriptors or scale-d differ between threads of a warpgroup", where);
  }
  const std::shared_ptr<MmaInstruction> instruction = entry;
  enter_accumulator(self, unit, *instruction, call, number, where);
  if (instruction->register_a) {
    auto& values = instruction->a_fragments[self.index % kWarpgroup];
    std::copy_n(call.a_registers, 4, values.begin());
    state.fragments.push_back({call.a_registers, values, number, where});
  }
  if (++instruction->arrived == kWarpgroup) unit.issue(*instruction);
}

void wgmma_commit(const Location& where) {
  Thread& self = this_thread();
  unit_of(self, where);
  self.wgmma->groups.push_back(self.wgmma->instructions);
}

void wgmma_wait(uint32_t keep, const Location& where) {
  Thread& self = this_thread();
  WarpgroupUnit& unit = unit_of(self, where);
  WgmmaThreadState& state = *self.wgmma;
  maybe_yield(where);
  if (state.groups.size() <= keep) return;
  const uint64_t target = state.groups[state.groups.size() - 1 - keep];
  while (unit.executed < target) {
    unit.waiters.push_back(&self);
    block("wgmma wait_group", where);
  }
  state.groups.erase(state.groups.begin(), state.groups.end() - keep);
  if (engine().settings.detectors) self.clock.order.raise(unit.component, unit.first_time + uint32_t(target));

  retire_accumulators(self, target, where);
  retire_fragments(state, target, where);
}

}  // namespace longcat_ops::emu
