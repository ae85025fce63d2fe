// Device check and build facts. Driver entry points are found at run time, so nothing here links libcuda.
#include <cuda_runtime.h>

#include <string>

#include "common/version.h"
#include "launch/device_check.h"
#include "launch/status.h"
#include "longcat_ops.h"

namespace longcat_ops {
namespace {

int cuda_failure(const char* call, cudaError_t error) {
  cudaGetLastError();  // clear a non-sticky error so that the caller's next check does not see it
  return set_status(LC_ERR_CUDA, std::string(call) + ": " + cudaGetErrorString(error));
}

int status_of(DeviceProblem problem) {
  switch (problem) {
    case DeviceProblem::kNone: return LC_OK;
    case DeviceProblem::kNoDriver:
    case DeviceProblem::kDriverTooOld: return LC_ERR_NO_DRIVER;
    case DeviceProblem::kNoDevice:
    case DeviceProblem::kBadIndex: return LC_ERR_NO_DEVICE;
    case DeviceProblem::kWrongArch: return LC_ERR_UNSUPPORTED_DEVICE;
  }
  return LC_ERR_INVALID;
}

#define LC_CUDA_CHECK(call)                                        \
  do {                                                             \
    const cudaError_t error_ = (call);                             \
    if (error_ != cudaSuccess) return cuda_failure(#call, error_); \
  } while (false)

// Fills in what can be known; stops without an error if the rest cannot exist.
int gather_facts(int device, DeviceFacts* facts) {
  facts->index = device;
  LC_CUDA_CHECK(cudaRuntimeGetVersion(&facts->runtime_version));
  LC_CUDA_CHECK(cudaDriverGetVersion(&facts->driver_version));
  if (facts->driver_version == 0) return LC_OK;
  const cudaError_t error = cudaGetDeviceCount(&facts->num_devices);
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver) {
    cudaGetLastError();
    facts->num_devices = 0;
    return LC_OK;
  }
  if (error != cudaSuccess) return cuda_failure("cudaGetDeviceCount", error);
  if (device < 0 || device >= facts->num_devices) return LC_OK;
  LC_CUDA_CHECK(cudaDeviceGetAttribute(&facts->major, cudaDevAttrComputeCapabilityMajor, device));
  LC_CUDA_CHECK(cudaDeviceGetAttribute(&facts->minor, cudaDevAttrComputeCapabilityMinor, device));
  cudaDeviceProp properties;
  LC_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  facts->name = properties.name;
  return LC_OK;
}

}  // namespace
}  // namespace longcat_ops

extern "C" {

int lc_abi_version(void) { return LC_ABI_VERSION; }

const char* lc_build_info(void) { return "longcat_ops " LC_VERSION " arch=sm_90a cudart=static nvcc=" LC_NVCC; }

int lc_device_supported(int device) {
  longcat_ops::DeviceFacts facts;
  if (const int status = longcat_ops::gather_facts(device, &facts)) return status;
  longcat_ops::DeviceVerdict verdict = longcat_ops::judge_device(facts);
  return longcat_ops::set_status(longcat_ops::status_of(verdict.problem), std::move(verdict.reason));
}

}  // extern "C"
