#include "launch/launch.h"

#include <string>

namespace longcat_ops {

int check_grid(const LaunchConfig& config) {
  constexpr int64_t kMaxGrid = 0x7fffffff;
  if (config.grid > 0 && config.grid <= kMaxGrid) return LC_OK;
  return set_status(LC_ERR_INVALID, std::string(config.name) + ": " + std::to_string(config.grid) +
                                        " thread blocks, expected at most " + std::to_string(kMaxGrid));
}

#ifndef LC_EMULATE

int report_launch(const LaunchConfig& config, const char* call, cudaError_t error) {
  if (error == cudaSuccess) return set_status(LC_OK, "");
  cudaGetLastError();  // so that the caller's next check does not see it
  return set_status(LC_ERR_CUDA, std::string(config.name) + ": " + call + " with grid " + std::to_string(config.grid) +
                                     ", block " + std::to_string(config.block) + ", shared memory " +
                                     std::to_string(config.smem) + ": " + cudaGetErrorString(error));
}

#endif

}  // namespace longcat_ops
