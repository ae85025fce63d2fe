#include "launch/launch.h"

#include <string>

namespace longcat_ops {

int check_grid(const LaunchConfig& config) {
  constexpr int64_t kMaxGrid = 0x7fffffff;
  if (config.grid <= 0 || config.grid > kMaxGrid)
    return set_status(LC_ERR_INVALID, std::string(config.name) + ": " + std::to_string(config.grid) +
                                          " thread blocks, expected at most " + std::to_string(kMaxGrid));
  const int cluster = config.cluster;
  if (cluster < 1 || cluster > 16 || (cluster & (cluster - 1)) != 0)
    return set_status(LC_ERR_INVALID, std::string(config.name) + ": a cluster of " + std::to_string(cluster) +
                                          " thread blocks, expected 1, 2, 4, 8 or 16");
  if (config.grid % cluster != 0)
    return set_status(LC_ERR_INVALID, std::string(config.name) + ": " + std::to_string(config.grid) +
                                          " thread blocks, expected a multiple of the cluster of " +
                                          std::to_string(cluster));
  return LC_OK;
}

#ifndef LC_EMULATE

int sm_count() {
  int device = 0, count = 0;
  const bool known = cudaGetDevice(&device) == cudaSuccess &&
                     cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess;
  return known ? count : kTypicalSms;
}

int report_launch(const LaunchConfig& config, const char* call, cudaError_t error) {
  if (error == cudaSuccess) return set_status(LC_OK, "");
  cudaGetLastError();  // so that the caller's next check does not see it
  return set_status(LC_ERR_CUDA, std::string(config.name) + ": " + call + " with grid " + std::to_string(config.grid) +
                                     ", block " + std::to_string(config.block) + ", cluster " +
                                     std::to_string(config.cluster) + ", shared memory " + std::to_string(config.smem) +
                                     ": " + cudaGetErrorString(error));
}

#endif

}  // namespace longcat_ops
