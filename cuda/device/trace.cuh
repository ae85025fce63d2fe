// Records when the blocks of the expert chain start and when their wait for the kernel ahead ends. Tools read from it
// how the kernels overlap. Compiles to nothing without LC_TRACE, which tools/device_bundle.py and the emulator define.
#pragma once

#include "ptx/ptx.cuh"
#ifdef LC_TRACE
#include "device/trace_variable.h"
#endif

namespace longcat_ops::device {

enum class TracedKernel : uint32_t { kPermuteQuant, kSwigluGemm, kGemm, kCombine };
enum class TracePoint : uint32_t { kEntered, kReady };

#ifdef LC_TRACE

constexpr uint32_t kTracedKernels = 4, kTracePoints = 2, kTraceBlocks = 1024;

struct TraceRecord {
  uint64_t ns;  // device timer; 0: no such block
  uint64_t sm;
};

// [kTracedKernels][kTracePoints][kTraceBlocks], or null. The host sets it in every file with lc_trace.
LC_DEVICE_VARIABLE TraceRecord* trace_records;

static const TraceVariable trace_variable(&trace_records);

// Writes a record in the first thread of each of the first kTraceBlocks blocks.
LC_DEVICE void trace(TracedKernel kernel, TracePoint point) {
  const uint32_t block = ptx::block_index();
  if (trace_records == nullptr || ptx::thread_index() != 0 || block >= kTraceBlocks) return;
  const uint32_t row = kTracePoints * static_cast<uint32_t>(kernel) + static_cast<uint32_t>(point);
  trace_records[kTraceBlocks * row + block] = {ptx::globaltimer_ns(), ptx::sm_index()};
}

#else

LC_DEVICE void trace(TracedKernel, TracePoint) {}

#endif

}  // namespace longcat_ops::device
