// The one way to start a kernel: on a GPU a checked cudaLaunchKernelEx, in the emulator a run over host memory.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/constants.h"
#include "launch/arguments.h"
#include "launch/memory.h"
#include "launch/status.h"
#include "longcat_ops.h"

#ifndef LC_EMULATE
#include <cuda_runtime.h>
#ifdef LC_TRACE
#include "launch/trace.h"
#endif
#else
#include <functional>
#endif

namespace longcat_ops {

struct LaunchConfig {
  const char* name;   // of the op, for errors
  int64_t grid;       // blocks; 0 launches nothing
  int block;          // threads
  int smem = 0;       // bytes of dynamic shared memory that the kernel uses
  bool pdl = true;    // may start before the kernel ahead on the stream ends; the kernel calls grid_dependency_wait
  int cluster = 1;    // blocks per cluster: 1, 2, 4, 8, or 16 if the device can; the grid is a multiple
  int registers = 0;  // per thread: fewest that the kernel may be compiled with
  bool load_only = false;  // prepare the kernel on this device, and launch nothing

  int allotted_smem() const { return round_smem(smem); }
};

// SMs of the current device; in the emulator, as configured.
int sm_count();

// Clusters of `size` blocks of this kernel, each block alone on its SM, that the current device holds at once.
template <class Params>
int resident_clusters(void (*kernel)(Params), int threads, int size);

// LC_OK, or the status of an error with its text set.
int check_grid(const LaunchConfig& config);

#ifndef LC_EMULATE

int report_launch(const LaunchConfig& config, const char* call, cudaError_t error);

// Prepares a kernel, once per device, before its first launch there. Returns LC_OK or an error.
int prepare_kernel(const LaunchConfig& config, const void* kernel);

int ask_resident_clusters(const void* kernel, int threads, int size);

template <class Params>
int launch(void (*kernel)(Params), const LaunchConfig& config, const std::decay_t<Params>& params, lc_stream_t stream,
           const Memory&) {
  if (config.grid == 0) return set_status(LC_OK, "");
  if (const int status = check_grid(config)) return status;
  const auto* address = reinterpret_cast<const void*>(kernel);
  if (const int status = prepare_kernel(config, address)) return status;
  if (config.load_only) return set_status(LC_OK, "");
  cudaLaunchAttribute attributes[2]{};
  unsigned attribute_count = 0;
  if (config.pdl) {
    cudaLaunchAttribute& attribute = attributes[attribute_count++];
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
  }
  if (config.cluster > 1) {
    cudaLaunchAttribute& attribute = attributes[attribute_count++];
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(config.cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  }
  cudaLaunchConfig_t launch_config{};
  launch_config.gridDim = dim3(static_cast<unsigned>(config.grid));
  launch_config.blockDim = dim3(static_cast<unsigned>(config.block));
  launch_config.dynamicSmemBytes = static_cast<size_t>(config.allotted_smem());
  launch_config.stream = static_cast<cudaStream_t>(stream);
  launch_config.attrs = attributes;
  launch_config.numAttrs = attribute_count;
#ifdef LC_TRACE
  if (const cudaError_t error = prepare_traced(config.name, address, launch_config, config.cluster))
    return report_launch(config, "prepare_traced", error);
#endif
  return report_launch(config, "cudaLaunchKernelEx", cudaLaunchKernelEx(&launch_config, kernel, params));
}

template <class Params>
int resident_clusters(void (*kernel)(Params), int threads, int size) {
  return ask_resident_clusters(reinterpret_cast<const void*>(kernel), threads, size);
}

#else

// smem: bytes of dynamic shared memory that the launch asks for.
int emulate(const LaunchConfig& config, int smem, std::function<void()> body, const Memory& memory);

template <class Params>
int launch(void (*kernel)(Params), const LaunchConfig& config, const std::decay_t<Params>& params, lc_stream_t,
           const Memory& memory) {
  if (config.grid == 0) return set_status(LC_OK, "");
  if (const int status = check_grid(config)) return status;
  if (config.load_only) return set_status(LC_OK, "");
  return emulate(config, config.allotted_smem(), [kernel, params] { kernel(params); }, memory);
}

template <class Params>
int resident_clusters(void (*)(Params), int, int size) {
  return typical_clusters(sm_count(), size);
}

#endif

}  // namespace longcat_ops
