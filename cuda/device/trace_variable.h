// Host side of device/trace.cuh.
#pragma once

namespace longcat_ops::device {

// Tells launch/trace.cpp the address of a file's trace_records.
struct TraceVariable {
  explicit TraceVariable(const void* variable);
};

}  // namespace longcat_ops::device
