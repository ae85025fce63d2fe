#include "bindings/cpu_kernels.h"

#include <algorithm>
#include <map>
#include <span>

#include "bindings/call.h"

namespace longcat_ops::bindings {

struct CpuKernel {
  const OpRow& row;
  void (*run)(const Call&);
};

namespace {

std::map<std::string_view, CpuKernel>& cpu_kernels() {
  static std::map<std::string_view, CpuKernel> kernels;
  return kernels;
}

// NOTE: a tensor without an address may be of a kind whose memory is elsewhere, or that torch makes when it is read.
bool is_on_cpu(const TensorDesc& tensor) {
  return tensor.device == DeviceKind::kCpu && (tensor.address != 0 || num_elements(tensor) == 0);
}

bool are_on_cpu(std::span<const Argument> values) {
  return std::all_of(values.begin(), values.end(), [](const Argument& value) {
    const TensorDesc* tensor = std::get_if<TensorDesc>(&value);
    return !tensor || is_on_cpu(*tensor);
  });
}

// Checks a call; false: a tensor is not dense memory of the CPU.
bool accepts(const CpuKernel& kernel, const Call& call) {
  if (!are_on_cpu(call.values())) return false;
  kernel.row.check(call);
  return true;
}

}  // namespace

void keep_cpu_kernel(std::string_view op, void (*kernel)(const Call&)) {
  const OpRow& row = find_op(op);
  cpu_kernels().emplace(row.schema.op, CpuKernel{row, kernel});
}

const CpuKernel* find_cpu_kernel(std::string_view op) {
  const auto found = cpu_kernels().find(op);
  return found == cpu_kernels().end() ? nullptr : &found->second;
}

const Schema& schema_of(const CpuKernel& kernel) { return kernel.row.schema; }

bool run_cpu_kernel(const CpuKernel& kernel, const PassedArgument* arguments) noexcept {
  try {
    const Call call(kernel.row.schema, arguments);
    if (!accepts(kernel, call)) return false;
    kernel.run(call);
    return true;
  } catch (...) {
    return false;
  }
}

struct Recording::Entry {
  Entry(const CpuKernel& kernel, const PassedArgument* arguments)
      : kernel(kernel), call(kernel.row.schema, arguments) {}

  const CpuKernel& kernel;
  const Call call;
};

Recording::Recording() = default;
Recording::~Recording() = default;

bool Recording::add(const CpuKernel& kernel, const PassedArgument* arguments) noexcept {
  try {
    auto entry = std::make_unique<Entry>(kernel, arguments);
    if (!accepts(kernel, entry->call)) return false;
    entries_.push_back(std::move(entry));
    return true;
  } catch (...) {
    return false;
  }
}

bool Recording::run() const noexcept {
  try {
    for (const auto& entry : entries_) entry->kernel.run(entry->call);
    return true;
  } catch (...) {
    return false;
  }
}

bool is_on_cpu(void* tensor) noexcept {
  int32_t device = 0;
  return aoti_torch_get_device_type(static_cast<AtenTensorHandle>(tensor), &device) == TORCH_SUCCESS &&
         device == aoti_torch_device_type_cpu();
}

int64_t size_of(void* tensor, int dimension) noexcept {
  const auto handle = static_cast<AtenTensorHandle>(tensor);
  int64_t dim = 0, *sizes = nullptr;
  if (aoti_torch_get_dim(handle, &dim) != TORCH_SUCCESS || dimension >= dim) return -1;
  return aoti_torch_get_sizes(handle, &sizes) == TORCH_SUCCESS ? sizes[dimension] : -1;
}

}  // namespace longcat_ops::bindings
