// The emulator's side of launch() and what liblongcat_emu.so has in place of the CUDA runtime.
#include <cstdint>
#include <exception>
#include <string>
#include <utility>

#include "base/version.h"
#include "emu/world.h"
#include "launch/launch.h"

namespace longcat_ops {
namespace {

struct Schedule {
  uint64_t seed = 1;
  emu::Policy policy = emu::Policy::kRandom;
  bool detectors = true;
};

thread_local Schedule schedule;

size_t dtype_bytes(int32_t dtype) {
  switch (dtype) {
    case LC_F32: return 4;
    case LC_F16:
    case LC_BF16: return 2;
    default: return 1;
  }
}

}  // namespace

// Rows or columns one by one where there are gaps between them, so that an access to a gap is out of bounds.
Memory& Memory::add(const char* name, const lc_matrix* matrix, bool written) {
  if (matrix == nullptr || matrix->rows == 0 || matrix->columns == 0) return *this;
  const bool by_column = matrix->column_stride != 1 && matrix->row_stride == 1;
  const int64_t runs = by_column ? matrix->columns : matrix->rows,
                run_size = by_column ? matrix->rows : matrix->columns;
  const int64_t run_stride = by_column ? matrix->column_stride : matrix->row_stride;
  const int64_t element_stride = by_column ? matrix->row_stride : matrix->column_stride;
  const size_t bytes = dtype_bytes(matrix->dtype);
  auto* data = static_cast<uint8_t*>(matrix->data);
  if (run_stride == run_size && element_stride == 1) {
    regions_.push_back({data, bytes * static_cast<size_t>(runs * run_size), name, written});
    return *this;
  }
  for (int64_t run = 0; run < runs; ++run) {
    for (int64_t i = 0; i < (element_stride == 1 ? 1 : run_size); ++i) {
      const int64_t offset = run * run_stride + i * element_stride, size = element_stride == 1 ? run_size : 1;
      regions_.push_back(
          {data + static_cast<int64_t>(bytes) * offset, bytes * static_cast<size_t>(size), name, written});
    }
  }
  return *this;
}

int emulate(const LaunchConfig& config, std::function<void()> body, const Memory& memory) try {
  emu::Settings settings;
  settings.detectors = schedule.detectors;
  emu::World world(schedule.seed, schedule.policy, settings);
  for (const Memory::Region& region : memory.regions())
    world.register_memory(region.data, region.bytes, 0, region.name, !region.written);
  emu::Launch launch;
  launch.grid = static_cast<uint32_t>(config.grid);
  launch.block = static_cast<uint32_t>(config.block);
  launch.smem_bytes = static_cast<uint32_t>(config.smem);
  launch.dependent_launch = config.pdl;
  launch.body = std::move(body);
  launch.name = config.name;
  world.launch(std::move(launch));
  world.synchronize();
  return set_status(LC_OK, "");
} catch (const std::exception& error) {
  return set_status(LC_ERR_EMULATION, error.what());
}

}  // namespace longcat_ops

extern "C" {

int lc_abi_version(void) { return LC_ABI_VERSION; }

const char* lc_build_info(void) { return "longcat_ops " LC_VERSION " arch=emulated"; }

int lc_device_supported(int) { return longcat_ops::set_status(LC_OK, "the host emulator"); }

// How this thread's next launches run. policy: 0 random, 1 eager, 2 lazy. Same seed and policy, same run.
LC_API void lc_emu_configure(uint64_t seed, int32_t policy, int32_t detectors) {
  using longcat_ops::emu::Policy;
  longcat_ops::schedule = {seed,
                           policy == 1   ? Policy::kEager
                           : policy == 2 ? Policy::kLazy
                                         : Policy::kRandom,
                           detectors != 0};
}

}  // extern "C"
