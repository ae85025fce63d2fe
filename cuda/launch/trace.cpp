#include "launch/trace.h"

#include <string>
#include <vector>

#include "device/trace_variable.h"
#include "launch/status.h"
#include "longcat_ops.h"

namespace longcat_ops {
namespace {

std::vector<const void*>& variables() {  // filled before main, so constructed on first use
  static std::vector<const void*> all;
  return all;
}

int carveout = -1;
std::string launches;

}  // namespace

device::TraceVariable::TraceVariable(const void* variable) { variables().push_back(variable); }

#ifndef LC_EMULATE

cudaError_t prepare_traced(const char* name, const void* kernel, const cudaLaunchConfig_t& config, int cluster) {
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, carveout);
  cudaFuncAttributes attributes{};
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  int resident = 0;  // clusters per device, or blocks per multiprocessor
  if (error == cudaSuccess)
    error = cluster > 1 ? cudaOccupancyMaxActiveClusters(&resident, kernel, &config)
                        : cudaOccupancyMaxActiveBlocksPerMultiprocessor(
                              &resident, kernel, static_cast<int>(config.blockDim.x), config.dynamicSmemBytes);
  if (error != cudaSuccess) return error;
  const auto field = [](const char* key, size_t value) {
    return ", \"" + std::string(key) + "\": " + std::to_string(value);
  };
  launches += (launches.empty() ? "{\"name\": \"" : ", {\"name\": \"") + std::string(name) + "\"" +
              field("grid", config.gridDim.x) + field("block", config.blockDim.x) +
              field("smem", config.dynamicSmemBytes) + field("cluster", static_cast<size_t>(cluster)) +
              field("resident", static_cast<size_t>(resident)) +
              field("registers", static_cast<size_t>(attributes.numRegs)) + "}";
  return cudaSuccess;
}

#endif

}  // namespace longcat_ops

extern "C" {

// `records`: device memory laid out as in device/trace.cuh, or null for none. Waits for the device.
LC_API int lc_trace(void* records) {
  using namespace longcat_ops;
  launches.clear();
  for (const void* variable : variables()) {
#ifdef LC_EMULATE
    *static_cast<void**>(const_cast<void*>(variable)) = records;
#else
    if (const cudaError_t error = cudaMemcpyToSymbol(variable, &records, sizeof records))
      return set_status(LC_ERR_CUDA, std::string("cudaMemcpyToSymbol: ") + cudaGetErrorString(error));
#endif
  }
  return set_status(LC_OK, "");
}

// Sets the preferred share of shared memory, in per cent, of kernels launched from now on; -1: the driver's choice.
LC_API void lc_trace_carveout(int32_t percent) { longcat_ops::carveout = percent; }

// The launches since lc_trace, as a JSON list; `resident` counts clusters per device if a launch has clusters, else
// blocks per multiprocessor.
LC_API const char* lc_trace_launches(void) {
  static std::string text;
  text = "[" + longcat_ops::launches + "]";
  return text.c_str();
}

}  // extern "C"
