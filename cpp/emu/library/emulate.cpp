// The emulator's side of launch/launch.h and launch/memory.h, and what liblongcat_emu.so has in place of the CUDA
// runtime.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/text.h"
#include "common/version.h"
#include "emu/world.h"
#include "launch/launch.h"
#include "ptx/ptx.cuh"

namespace longcat_ops {
namespace {

struct Schedule {
  uint64_t seed = 1;
  emu::Policy policy = emu::Policy::kRandom;
  bool detectors = true;
  emu::MmaMode mma = emu::MmaMode::kExact;
  int sms = 2;
};

thread_local Schedule schedule;

// A launch kept for a later run.
struct Captured {
  LaunchConfig config;
  std::function<void()> body;
  Memory memory;
};

thread_local std::vector<Captured> captured;
thread_local bool capturing = false;

// Several devices that run at the same time, while they are open: launches wait for lc_emu_synchronize.
struct Machine {
  emu::World world;
  int device = 0;  // of the next launches
};

thread_local std::unique_ptr<Machine> machine;

size_t dtype_bytes(int32_t dtype) {
  switch (dtype) {
    case LC_F32: return 4;
    case LC_F16:
    case LC_BF16: return 2;
    default: return 1;
  }
}

}  // namespace

// Adds rows or columns one by one if there are gaps between them, so that an access to a gap is out of bounds.
Memory& Memory::add(const char* name, const lc_matrix* matrix, Access access) {
  if (matrix == nullptr || matrix->rows == 0 || matrix->columns == 0) return *this;
  struct Axis {
    int64_t size, stride;
  };
  Axis outer{matrix->rows, matrix->row_stride}, inner{matrix->columns, matrix->column_stride};
  if (inner.stride != 1 && outer.stride == 1) std::swap(outer, inner);
  Axis run{1, 1};  // the contiguous part
  if (inner.stride == 1) std::swap(run, inner);
  if (outer.stride == run.size && inner.size == 1) {
    run.size *= outer.size;
    outer.size = 1;
  }
  const auto bytes = static_cast<int64_t>(dtype_bytes(matrix->dtype));
  auto* data = static_cast<uint8_t*>(matrix->data);
  for (int64_t i = 0; i < outer.size; ++i)
    for (int64_t j = 0; j < inner.size; ++j)
      add(name, data + bytes * (i * outer.stride + j * inner.stride), static_cast<size_t>(bytes * run.size), access);
  return *this;
}

Memory& Memory::add(const char* name, void* data, size_t bytes, Access access) {
  if (data != nullptr && bytes > 0)
    regions_.push_back({data, bytes, name, access.written, access.settled, access.filler});
  return *this;
}

Memory& Memory::add(const char* name, const lc_stack* stack, Access access) {
  lc_matrix matrix = stack->matrix;
  const auto step = static_cast<int64_t>(dtype_bytes(matrix.dtype)) * stack->stride;
  for (int64_t i = 0; i < stack->count; ++i) {
    matrix.data = static_cast<uint8_t*>(stack->matrix.data) + i * step;
    add(name, &matrix, access);
  }
  return *this;
}

int sm_count() { return schedule.sms; }

namespace {

// The kernel ahead on the stream: lets the next one start at once, and only then writes all arguments (their first
// bytes, unchanged). A kernel that touches an argument before grid_dependency_wait races with it.
void write_arguments(const std::vector<Memory::Region>& regions) {
  ptx::grid_dependency_launch();
  if (ptx::thread_index() != 0) return;
  constexpr size_t kBytes = 4;
  for (const Memory::Region& region : regions) {
    if (region.settled) continue;
    auto* data = static_cast<uint8_t*>(region.data);
    for (size_t i = 0; i < region.bytes && i < kBytes; ++i) ptx::store_global(data + i, data[i]);
  }
}

emu::Launch emulated_launch(const Captured& call) {
  const LaunchConfig& config = call.config;
  emu::Launch launch;
  launch.grid = static_cast<uint32_t>(config.grid);
  launch.block = static_cast<uint32_t>(config.block);
  launch.cluster = static_cast<uint32_t>(config.cluster);
  launch.smem_bytes = static_cast<uint32_t>(config.smem);
  constexpr uint32_t kRegisters = 65536;  // of an SM; a compiler stays below what its launch bounds leave per thread
  launch.registers_per_thread = std::min(launch.registers_per_thread, kRegisters / launch.block / 8 * 8);
  launch.dependent_launch = config.pdl;
  launch.body = call.body;
  launch.name = config.name;
  return launch;
}

emu::Settings settings_of(const Schedule& s) {
  emu::Settings settings;
  settings.detectors = s.detectors;
  settings.mma_mode = s.mma;
  return settings;
}

void register_regions(emu::World& world, const Memory& memory, int device) {
  for (const Memory::Region& region : memory.regions())
    world.register_memory(region.data, region.bytes, device, region.name, !region.written,
                          static_cast<uint8_t>(region.filler));
}

// LC_OK, or the error that `body` throws.
template <class Body>
int guarded(Body body) try {
  body();
  return set_status(LC_OK, "");
} catch (const std::exception& error) {
  return set_status(LC_ERR_EMULATION, error.what());
}

// Runs calls on one stream. Memory that a launch writes is lost at first, unless an earlier one has named these bytes.
int run(const std::vector<Captured>& calls) {
  if (calls.empty()) return set_status(LC_OK, "");
  return guarded([&] {
    emu::World world(schedule.seed, schedule.policy, settings_of(schedule));
    for (const Captured& call : calls) register_regions(world, call.memory, 0);
    const Captured& first = calls.front();
    if (first.config.pdl) {
      emu::Launch predecessor;
      predecessor.block = 32;
      predecessor.body = [&first] { write_arguments(first.memory.regions()); };
      predecessor.name = "predecessor";
      world.launch(std::move(predecessor));
    }
    for (const Captured& call : calls) world.launch(emulated_launch(call));
    world.synchronize();
  });
}

}  // namespace

int emulate(const LaunchConfig& config, int smem, std::function<void()> body, const Memory& memory) {
  if (smem < config.smem || smem % kSmemUnit != 0)
    return set_status(LC_ERR_EMULATION, text(config.name, ": ", smem, " bytes of dynamic shared memory, expected ",
                                             config.smem, " or more, a multiple of ", kSmemUnit));
  Captured call{config, std::move(body), memory};
  if (machine != nullptr)
    return guarded([&] {
      register_regions(machine->world, memory, machine->device);
      emu::Launch launch = emulated_launch(call);
      launch.device = machine->device;
      machine->world.launch(std::move(launch));
    });
  if (!capturing) return run({std::move(call)});
  captured.push_back(std::move(call));
  return set_status(LC_OK, "");
}

}  // namespace longcat_ops

extern "C" {

int lc_abi_version(void) { return LC_ABI_VERSION; }

const char* lc_build_info(void) { return "longcat_ops " LC_VERSION " arch=emulated"; }

int lc_device_supported(int) { return longcat_ops::set_status(LC_OK, "the host emulator"); }

// Sets how this thread's next launches run. policy: 0 random, 1 eager, 2 lazy. The same seed and policy give the same
// run. mma: 0 exact, 1 as an H100 adds up. sms: what persistent kernels size their grids by.
LC_API void lc_emu_configure(uint64_t seed, int32_t policy, int32_t detectors, int32_t mma, int32_t sms) {
  using longcat_ops::emu::MmaMode;
  using longcat_ops::emu::Policy;
  constexpr Policy kPolicies[] = {Policy::kRandom, Policy::kEager, Policy::kLazy};
  longcat_ops::schedule = {seed, kPolicies[policy < 0 || policy > 2 ? 0 : policy], detectors != 0,
                           mma != 0 ? MmaMode::kHopper : MmaMode::kExact, sms};
}

// on: forgets earlier launches, and keeps this thread's instead of running them, until called with 0.
LC_API void lc_emu_capture(int32_t on) {
  if (on != 0) longcat_ops::captured.clear();
  longcat_ops::capturing = on != 0;
}

// Runs the kept launches on one stream, over what their memory holds now.
LC_API int lc_emu_replay(void) { return longcat_ops::run(longcat_ops::captured); }

// Opens `devices` devices with a region of zeroed memory each, which all of them reach, and one multicast address for
// all regions. Until lc_emu_close, this thread's launches are queued on the device that lc_emu_device names.
LC_API int lc_emu_open(int32_t devices, size_t bytes, void** memory, void** multicast) {
  using namespace longcat_ops;
  return guarded([&] {
    machine.reset(new Machine{emu::World(schedule.seed, schedule.policy, settings_of(schedule))});
    std::vector<void*> regions;
    for (int device = 0; device < devices; ++device) {
      memory[device] = machine->world.alloc(bytes, device, "symmetric memory", true);
      memset(memory[device], 0, bytes);
      machine->world.make_peer_accessible(memory[device]);
      regions.push_back(memory[device]);
    }
    *multicast = machine->world.bind_multicast(regions, "multicast memory");
  });
}

// record: host memory that the device reaches, or null.
LC_API void lc_emu_device(int32_t device, lc_comm_record* record) {
  longcat_ops::machine->device = device;
  if (record != nullptr) longcat_ops::machine->world.register_memory(record, sizeof *record, device, "record");
}

// Runs what is queued, all devices together.
LC_API int lc_emu_synchronize(void) {
  return longcat_ops::guarded([] { longcat_ops::machine->world.synchronize(); });
}

LC_API void lc_emu_close(void) { longcat_ops::machine.reset(); }

}  // extern "C"
