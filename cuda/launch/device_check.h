// Whether this library, or a kernel of it, can run on a device. Pure functions of facts, so that every answer is
// testable without that device.
#pragma once

#include <string>

namespace longcat_ops {

struct DeviceFacts {
  int driver_version = 0;   // CUDA version of the driver, 13000 = 13.0; 0 = no driver
  int runtime_version = 0;  // CUDA version of the library's runtime
  int num_devices = 0;
  int index = 0;  // the device asked for
  std::string name;
  int major = 0, minor = 0;  // compute capability
};

enum class DeviceProblem { kNone, kNoDriver, kDriverTooOld, kNoDevice, kBadIndex, kWrongArch };

struct DeviceVerdict {
  DeviceProblem problem;
  std::string reason;
};

DeviceVerdict judge_device(const DeviceFacts& facts);

// Why a kernel with this many registers per thread must not be launched; empty if it may.
std::string judge_registers(const char* op, int registers, int fewest);

}  // namespace longcat_ops
