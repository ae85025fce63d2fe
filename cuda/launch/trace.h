// What the host knows of traced launches (device/trace.cuh). Only in libraries compiled with LC_TRACE.
#pragma once

#ifndef LC_EMULATE
#include <cuda_runtime.h>
#endif

namespace longcat_ops {

#ifndef LC_EMULATE

// Before a launch: sets the kernel's carve-out as lc_trace_carveout said, and notes how many of its blocks or clusters
// fit on the device.
cudaError_t prepare_traced(const char* name, const void* kernel, const cudaLaunchConfig_t& config, int cluster);

#endif

}  // namespace longcat_ops
