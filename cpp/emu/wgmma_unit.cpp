// The unit's side of wgmma: operands in shared memory, issue and execution.
#include <algorithm>
#include <cstring>

#include "emu/tensor_core.h"
#include "emu/wgmma.h"

namespace longcat_ops::emu {
namespace {

struct Descriptor {
  explicit Descriptor(uint64_t bits)
      : start(uint32_t(bits & 0x3fff) << 4),
        leading(uint32_t(bits >> 16 & 0x3fff) << 4),
        stride(uint32_t(bits >> 32 & 0x3fff) << 4),
        base_offset(uint32_t(bits >> 49 & 7)),
        layout(uint32_t(bits >> 62)) {}

  uint32_t start, leading, stride, base_offset, layout;

  uint32_t swizzle_chunks() const { return layout == 0 ? 1 : 16u >> layout; }  // 16-byte chunks in a row: 8, 4, 2
  uint8_t swizzle() const {                                                    // as ptx::Swizzle
    constexpr uint8_t kSwizzle[] = {0, 3, 2, 1};
    return kSwizzle[layout];
  }
};

void check_descriptor(uint64_t bits, bool mn_major, const Location& where) {
  const Descriptor d(bits);
  if (d.layout == 0) return;
  const uint32_t atom = 8 * 16 * d.swizzle_chunks();
  if (d.base_offset != 0) fail("descriptor", "a base offset is not modelled", where);
  if ((d.start >> 7 & (d.swizzle_chunks() - 1)) != 0)
    fail("descriptor", "the start address is not in the first row of a swizzle atom", where);
  if (d.stride % atom != 0 || (mn_major && d.leading % atom != 0))
    fail("descriptor", "an offset is not a multiple of the swizzle atom, " + std::to_string(atom) + " B", where);
}

}  // namespace

uint32_t operand_address(uint64_t descriptor, bool mn_major, uint32_t element_bytes, uint32_t row, uint32_t k) {
  const Descriptor d(descriptor);
  const uint32_t chunks = d.swizzle_chunks();
  uint32_t address = d.start;
  if (!mn_major) {
    const uint32_t byte = k * element_bytes;
    if (d.layout == 0) return address + row / 8 * d.stride + byte / 16 * d.leading + row % 8 * 16 + byte % 16;
    address += row / 8 * d.stride + row % 8 * 16 * chunks + byte;
  } else {
    const uint32_t byte = row * element_bytes, pitch = 16 * chunks;
    if (d.layout == 0) return address + byte / 16 * d.stride + k / 8 * d.leading + k % 8 * 16 + byte % 16;
    address += byte / pitch * d.leading + k / 8 * d.stride + k % 8 * pitch + byte % pitch;
  }
  return address ^ ((address >> 7 & (chunks - 1)) << 4);
}

WarpgroupUnit::WarpgroupUnit(Cta* cta_, uint32_t index) : cta(cta_) {
  component = engine().extra_component(cta, "wgmma of warpgroup", index);
  first_time = engine().components[component].last_time;
}

std::shared_ptr<FenceRecord> WarpgroupUnit::fence_record(uint64_t number) {
  while (first_fence + fences.size() <= number) fences.push_back(std::make_shared<FenceRecord>());
  std::shared_ptr<FenceRecord> record = fences[number - first_fence];
  // Records that all 128 threads have passed live on in the instructions that need them.
  while (fences.size() > 1) {
    uint32_t passed = 0;
    for (const auto& warp : fences.front()->warps) passed += warp.threads;
    if (passed < kWarpgroup) break;
    fences.pop_front();
    ++first_fence;
  }
  return record;
}

std::shared_ptr<MmaInstruction>& WarpgroupUnit::instruction(uint64_t number) {
  while (executed + instructions.size() < number) instructions.push_back(nullptr);
  return instructions[number - executed - 1];
}

// The operands are checked now, with what was ordered before the fences; they are read later.
void WarpgroupUnit::issue(MmaInstruction& instruction) {
  const WgmmaCall& call = instruction.call;
  const Location& where = instruction.where;
  ++issued;
  Access access{.component = component, .time = first_time + uint32_t(issued), .order = nullptr};
  access.site = engine().site(where, "wgmma");
  access.check_initialised = true;
  access.check_swizzle = true;
  auto check_operand = [&](uint64_t descriptor, bool mn_major, uint32_t first_row, uint32_t rows,
                           const FenceRecord::Warp& known) {
    const uint32_t element = call.bf16 ? 2 : 1, k_count = 32 / element, per_chunk = 16 / element;
    access.order = &known.order;
    access.async_visible = &known.async_shared;
    access.swizzle = Descriptor(descriptor).swizzle();
    const uint32_t row_step = mn_major ? per_chunk : 1, k_step = mn_major ? 1 : per_chunk;
    for (uint32_t row = first_row; row < first_row + rows; row += row_step)
      for (uint32_t k = 0; k < k_count; k += k_step) {
        const uint32_t address = cta->own_address(operand_address(descriptor, mn_major, element, row, k));
        cta->shared(address, 16, "wgmma operand", where);
        engine().check_shared(*cta, address, 16, access);
      }
  };
  if (!instruction.register_a) {
    check_descriptor(call.a, call.mn_major_a, where);
    for (uint32_t warp = 0; warp < 4; ++warp)
      check_operand(call.a, call.mn_major_a, 16 * warp, 16, instruction.fence->warps[warp]);
  }
  check_descriptor(call.b, call.mn_major_b, where);
  FenceRecord::Warp all = instruction.fence->warps[0];
  for (uint32_t warp = 1; warp < 4; ++warp) {
    all.order.meet(instruction.fence->warps[warp].order);
    all.async_shared.meet(instruction.fence->warps[warp].async_shared);
  }
  check_operand(call.b, call.mn_major_b, 0, uint32_t(call.n), all);
  if (queued) return;
  queued = true;
  engine().enqueue(cta->warpgroups[std::find_if(cta->warpgroups.begin(), cta->warpgroups.end(),
                                                [&](const auto& unit) { return unit.get() == this; }) -
                                   cta->warpgroups.begin()]);
}

namespace {

// Gathers an operand as rows of k elements.
template <class T>
void gather(Cta& cta, uint64_t descriptor, bool mn_major, uint32_t rows, uint32_t k_count, std::vector<T>& out,
            const Location& where) {
  out.resize(rows * k_count);
  if (!mn_major) {
    constexpr uint32_t kPerChunk = 16 / sizeof(T);
    for (uint32_t row = 0; row < rows; ++row)
      for (uint32_t k = 0; k < k_count; k += kPerChunk)
        std::memcpy(&out[row * k_count + k],
                    cta.shared(cta.own_address(operand_address(descriptor, false, sizeof(T), row, k)), 16,
                               "wgmma operand", where),
                    16);
    return;
  }
  for (uint32_t row = 0; row < rows; ++row)
    for (uint32_t k = 0; k < k_count; ++k)
      std::memcpy(&out[row * k_count + k],
                  cta.shared(cta.own_address(operand_address(descriptor, true, sizeof(T), row, k)), sizeof(T),
                             "wgmma operand", where),
                  sizeof(T));
}

// A fragment: 4 registers of 4 bytes hold rows lane/4 and lane/4 + 8, and two groups of four times 4 bytes along k.
template <class T>
void gather_fragments(const std::vector<std::array<uint32_t, 4>>& fragments, uint32_t k_count, std::vector<T>& out) {
  constexpr uint32_t kPerRegister = 4 / sizeof(T);
  out.resize(64 * k_count);
  for (uint32_t thread = 0; thread < kWarpgroup; ++thread)
    for (uint32_t r = 0; r < 4; ++r) {
      const uint32_t row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (r % 2);
      const uint32_t k = kPerRegister * (thread % 4) + k_count / 2 * (r / 2);
      std::memcpy(&out[row * k_count + k], &fragments[thread][r], 4);
    }
}

template <class T>
void execute(Cta& cta, MmaInstruction& instruction, uint32_t k_count,
             void (*multiply)(const T*, const T*, int, bool, float*, MmaMode)) {
  thread_local std::vector<T> a, b;
  const WgmmaCall& call = instruction.call;
  if (instruction.register_a)
    gather_fragments(instruction.a_fragments, k_count, a);
  else
    gather(cta, call.a, call.mn_major_a, 64, k_count, a, instruction.where);
  gather(cta, call.b, call.mn_major_b, uint32_t(call.n), k_count, b, instruction.where);
  multiply(a.data(), b.data(), call.n, call.accumulate, instruction.accumulator->values.data(),
           engine().settings.mma_mode);
}

}  // namespace

bool WarpgroupUnit::step() {
  const std::shared_ptr<MmaInstruction> instruction = std::move(instructions.front());
  instructions.pop_front();
  ++executed;
  ++engine().stats.mma;
  if (instruction->call.bf16)
    execute<uint16_t>(*cta, *instruction, 16, multiply_bf16);
  else
    execute<uint8_t>(*cta, *instruction, 32, multiply_e4m3);
  engine().wake_all(waiters);
  if (executed < issued) return false;
  queued = false;
  return true;
}

}  // namespace longcat_ops::emu
