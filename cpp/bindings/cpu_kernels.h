// What liblongcat_torch offers to _C: the CPU kernels of ops, run without torch's dispatcher. Includes neither torch
// nor Python. A tensor is an AtenTensorHandle that the caller keeps alive.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "check/arguments.h"

#define LC_FOR_PYTHON __attribute__((visibility("default")))

namespace longcat_ops::bindings {

// One argument, of its parameter's kind.
struct PassedArgument {
  bool given = false;  // false: None
  void* tensor = nullptr;
  int64_t integer = 0;  // or a bool
  double number = 0;
};

struct CpuKernel;

LC_FOR_PYTHON const CpuKernel* find_cpu_kernel(std::string_view op);  // null: the op has none in C++
LC_FOR_PYTHON const Schema& schema_of(const CpuKernel& kernel);

// Checks the arguments, as many as the schema has, and runs the kernel. False: a tensor is no dense memory of the CPU,
// or the check refused the arguments, and nothing was written; or the kernel itself failed. Needs no GIL.
LC_FOR_PYTHON bool run_cpu_kernel(const CpuKernel& kernel, const PassedArgument* arguments) noexcept;

// Calls in a row, checked once and run as often as one likes. Their tensors must outlive it, at the same memory.
class LC_FOR_PYTHON Recording {
 public:
  Recording();
  ~Recording();
  bool add(const CpuKernel& kernel, const PassedArgument* arguments) noexcept;  // false: as run_cpu_kernel
  bool run() const noexcept;                                                    // false: a kernel failed. Needs no GIL.

 private:
  struct Entry;
  std::vector<std::unique_ptr<Entry>> entries_;
};

LC_FOR_PYTHON bool is_on_cpu(void* tensor) noexcept;
LC_FOR_PYTHON int64_t size_of(void* tensor, int dimension) noexcept;  // -1: it has no such dimension

}  // namespace longcat_ops::bindings
