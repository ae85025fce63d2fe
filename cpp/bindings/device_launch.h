// Calls the C ABI of a kernel library with torch tensors, on a GPU or in the emulator: descriptors, device, stream,
// errors.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <atomic>

#include "bindings/call.h"
#include "bindings/kernel_library.h"
#include "check/error.h"
#include "longcat_ops.h"

namespace longcat_ops::bindings {

// A tensor [rows, columns] or a stack of them; without data if an optional one is absent.
inline lc_matrix device_matrix(const Call& a, std::string_view name) {
  const TensorDesc* desc = a.optional_tensor(name);
  if (!desc) return {};
  return {a.address(name), static_cast<int32_t>(desc->dtype), desc->sizes[0], desc->sizes[1], desc->strides[0],
          desc->strides[1]};
}

inline lc_stack device_stack(const Call& a, std::string_view name) {
  const TensorDesc* desc = a.optional_tensor(name);
  if (!desc) return {};
  return {{a.address(name), static_cast<int32_t>(desc->dtype), desc->sizes[1], desc->sizes[2], desc->strides[1],
           desc->strides[2]},
          desc->sizes[0],
          desc->strides[0]};
}

static_assert(static_cast<int>(DType::kFloat32) == LC_F32 && static_cast<int>(DType::kFloat16) == LC_F16 &&
              static_cast<int>(DType::kBFloat16) == LC_BF16 && static_cast<int>(DType::kFloat8E4M3) == LC_E4M3);

// torch's current stream of a device. NOTE: found at run time, because only a torch with CUDA has the symbol.
inline lc_stream_t current_stream(int device) {
  using Function = int32_t (*)(int32_t, void**);
  static const auto find = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
  void* stream = nullptr;
  if (!find || find(device, &stream) != 0)
    fail_unsupported("this torch has no current CUDA stream for device " + std::to_string(device),
                     "install a CUDA build of torch");
  return stream;
}

// NOTE: asks once per device, because the answer stays and asking costs more than a launch.
inline void require_supported(int device, const KernelLibrary& kernels) {
  static std::atomic<uint64_t> supported{0};
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if (supported.load(std::memory_order_relaxed) & bit) return;
  if (kernels.lc_device_supported(device) != LC_OK)
    fail_unsupported(kernels.lc_last_error(), "use an H100, H200 or H800");
  supported.fetch_or(bit, std::memory_order_relaxed);
}

// What `ask` returns on the tensor's device, of which a kernel library may ask things before a launch.
template <class Ask>
auto with_device(const TensorDesc& tensor, Ask&& ask) {
  if (tensor.device == DeviceKind::kCpu) return ask();
  require_supported(tensor.device_index, kernel_library(tensor.device));
  const torch::stable::accelerator::DeviceGuard guard(tensor.device_index);
  return ask();
}

// Calls a function of the kernel library for the tensor's device; throws the error that it reports.
template <class Args>
void launch_on(const TensorDesc& tensor, int (*KernelLibrary::*function)(const Args*, lc_stream_t), const Args& args) {
  const KernelLibrary& kernels = kernel_library(tensor.device);
  if (kernels.*function == nullptr) throw std::runtime_error("the kernel library lacks the function of this op");
  const auto run = [&](lc_stream_t stream) {
    const int status = (kernels.*function)(&args, stream);
    if (status == LC_OK) return;
    const char* mark = status == LC_ERR_EMULATION ? "[LC-EMULATION] " : "";
    throw std::runtime_error(std::string(mark) + kernels.lc_last_error());
  };
  if (tensor.device == DeviceKind::kCpu) return run(nullptr);
  require_supported(tensor.device_index, kernels);
  const torch::stable::accelerator::DeviceGuard guard(tensor.device_index);
  run(current_stream(tensor.device_index));
}

template <OpName kOp, void (*kKernel)(const Call&)>
void add_device_kernel(torch::stable::detail::StableLibrary& library) {
  add_kernel<kOp, kKernel, arguments_are_checked>(library);
}

}  // namespace longcat_ops::bindings

// `function` registers a family's kernels: as torch.ops.longcat_ops on a GPU, if this build has CUDA kernels, and as
// torch.ops.longcat_kernels, through which tests and tools reach the kernels of either device.
#ifdef LONGCAT_WITH_CUDA
#define LC_REGISTER_CUDA_KERNELS(function) \
  STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CUDA, m) { longcat_ops::bindings::function(m); }
#else
#define LC_REGISTER_CUDA_KERNELS(function)
#endif
#define LC_REGISTER_DEVICE_KERNELS(function)                                                 \
  LC_REGISTER_CUDA_KERNELS(function)                                                         \
  STABLE_TORCH_LIBRARY_IMPL(longcat_kernels, CPU, m) { longcat_ops::bindings::function(m); } \
  STABLE_TORCH_LIBRARY_IMPL(longcat_kernels, CUDA, m) { longcat_ops::bindings::function(m); }
