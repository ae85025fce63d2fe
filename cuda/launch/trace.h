// What the host records of traced launches (device/trace.cuh). Only in libraries compiled with LC_TRACE.
#pragma once

#ifndef LC_EMULATE
#include <cuda_runtime.h>
#endif

namespace longcat_ops {

#ifndef LC_EMULATE

// Called before a launch: sets the kernel's carve-out to lc_trace_carveout's and records how many of its blocks fit on
// an SM, or clusters on the device.
cudaError_t prepare_traced(const char* name, const void* kernel, const cudaLaunchConfig_t& config, int cluster);

#endif

}  // namespace longcat_ops
