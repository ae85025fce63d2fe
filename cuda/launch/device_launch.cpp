// Launches on a GPU: attributes and queries of a kernel, once per device.
#ifndef LC_EMULATE

#include <map>
#include <mutex>
#include <set>
#include <string>
#include <tuple>
#include <utility>

#include "launch/device_check.h"
#include "launch/launch.h"

namespace longcat_ops {
namespace {

int current_device() {
  int device = 0;
  return cudaGetDevice(&device) == cudaSuccess ? device : 0;
}

// NOTE: attributes belong to the function, for all host threads. Their values are always the same, or a thread could
// change them between another's request and its launch.
cudaError_t set_attributes(const void* kernel) {
  // NOTE: the largest carve-out. With a smaller one, blocks of the next kernel, which programmatic dependent launch
  // starts beside this one, could not enter an SM before it is empty.
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxBlockSmem);
  return error;
}

std::mutex guard;  // of the tables below

}  // namespace

int sm_count() {
  int count = 0;
  const bool known = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, current_device()) == cudaSuccess;
  return known ? count : kTypicalSms;
}

int prepare_kernel(const LaunchConfig& config, const void* kernel) {
  static std::set<std::pair<const void*, int>> prepared;
  const std::pair key{kernel, current_device()};
  const std::lock_guard lock(guard);
  if (prepared.count(key) != 0) return LC_OK;
  cudaFuncAttributes attributes{};
  if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel))
    return report_launch(config, "cudaFuncGetAttributes", error);
  if (const std::string problem = judge_registers(config.name, attributes.numRegs, config.registers); !problem.empty())
    return set_status(LC_ERR_INVALID, problem);
  if (const cudaError_t error = set_attributes(kernel)) return report_launch(config, "cudaFuncSetAttribute", error);
  constexpr int kPortableCluster = 8;  // larger ones need the attribute below
  if (config.cluster > kPortableCluster) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != cudaSuccess) return report_launch(config, "cudaFuncSetAttribute", error);
  }
  prepared.insert(key);
  return LC_OK;
}

int ask_resident_clusters(const void* kernel, int threads, int size) {
  static std::map<std::tuple<const void*, int, int>, int> known;
  const std::tuple key{kernel, current_device(), size};
  const std::lock_guard lock(guard);
  if (const auto found = known.find(key); found != known.end()) return found->second;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(size);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(size));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = kMaxBlockSmem;  // so that each block has an SM
  config.attrs = &cluster;
  config.numAttrs = 1;
  int count = 0;
  if (set_attributes(kernel) != cudaSuccess || cudaOccupancyMaxActiveClusters(&count, kernel, &config) != cudaSuccess ||
      count < 1) {
    cudaGetLastError();  // so that the caller's next check does not see it
    count = typical_clusters(sm_count(), size);
  }
  known.emplace(key, count);
  return count;
}

int report_launch(const LaunchConfig& config, const char* call, cudaError_t error) {
  if (error == cudaSuccess) return set_status(LC_OK, "");
  cudaGetLastError();  // so that the caller's next check does not see it
  return set_status(LC_ERR_CUDA, std::string(config.name) + ": " + call + " with grid " + std::to_string(config.grid) +
                                     ", block " + std::to_string(config.block) + ", cluster " +
                                     std::to_string(config.cluster) + ", shared memory " +
                                     std::to_string(config.allotted_smem()) + ": " + cudaGetErrorString(error));
}

}  // namespace longcat_ops

#endif
