#include "launch/device_check.h"

#include "common/text.h"

namespace longcat_ops {
namespace {

std::string cuda_version(int version) { return text(version / 1000, ".", version % 1000 / 10); }

}  // namespace

DeviceVerdict judge_device(const DeviceFacts& facts) {
  if (facts.driver_version == 0)
    return {DeviceProblem::kNoDriver,
            "no NVIDIA driver is installed on this machine (libcuda was not found); CUDA kernels cannot run, CPU "
            "tensors work"};
  // A driver serves every runtime of its own major version.
  if (facts.driver_version / 1000 < facts.runtime_version / 1000)
    return {DeviceProblem::kDriverTooOld,
            text("the NVIDIA driver supports CUDA ", cuda_version(facts.driver_version),
                 ", and the kernels were built with CUDA ", cuda_version(facts.runtime_version),
                 "; update the driver, or build with an nvcc of its major version")};
  if (facts.num_devices == 0)
    return {DeviceProblem::kNoDevice,
            "the NVIDIA driver is installed but shows no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"};
  if (facts.index < 0 || facts.index >= facts.num_devices)
    return {DeviceProblem::kBadIndex, text("device ", facts.index, " does not exist; this process sees ",
                                           facts.num_devices, " GPU(s), numbered from 0")};
  if (facts.major != 9 || facts.minor != 0)
    return {DeviceProblem::kWrongArch,
            text("device ", facts.index, " is ", facts.name, " (sm_", facts.major, facts.minor,
                 "); the kernels are compiled for sm_90a (H100, H200, H800) only")};
  return {DeviceProblem::kNone, text("device ", facts.index, " is ", facts.name, " (sm_90)")};
}

std::string judge_registers(const char* op, int registers, int fewest) {
  if (registers >= fewest) return "";
  return text(op, ": its kernel was compiled with ", registers, " registers a thread, expected at least ", fewest,
              ": with fewer its warps would wait for registers that nobody gives back\n"
              "  fix: build with another nvcc; tools/check_kernels.py shows what it gives");
}

}  // namespace longcat_ops
