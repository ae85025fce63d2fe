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

}  // namespace longcat_ops
