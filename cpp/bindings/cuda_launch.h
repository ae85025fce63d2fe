// From torch tensors on a GPU to the C ABI of the kernel library: descriptors, device, stream, errors.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>

#include "bindings/tensor_args.h"
#include "check/error.h"
#include "longcat_ops.h"

namespace longcat_ops::bindings {

inline lc_matrix cuda_matrix(const Tensor& tensor, const TensorDesc& desc) {
  return {const_cast<void*>(tensor.const_data_ptr()),
          static_cast<int32_t>(desc.dtype),
          desc.sizes[0],
          desc.sizes[1],
          desc.strides[0],
          desc.strides[1]};
}

inline lc_stack cuda_stack(const Tensor& tensor, const TensorDesc& desc) {
  return {{const_cast<void*>(tensor.const_data_ptr()), static_cast<int32_t>(desc.dtype), desc.sizes[1], desc.sizes[2],
           desc.strides[1], desc.strides[2]},
          desc.sizes[0],
          desc.strides[0]};
}

// Of outputs: a tensor that shares its memory until it is written (copy on write) gets memory of its own.
inline lc_matrix cuda_output(const Tensor& tensor, const TensorDesc& desc) {
  lc_matrix matrix = cuda_matrix(tensor, desc);
  matrix.data = tensor.mutable_data_ptr();
  return matrix;
}

inline lc_stack cuda_output_stack(const Tensor& tensor, const TensorDesc& desc) {
  lc_stack stack = cuda_stack(tensor, desc);
  stack.matrix.data = tensor.mutable_data_ptr();
  return stack;
}

static_assert(static_cast<int>(DType::kFloat32) == LC_F32 && static_cast<int>(DType::kFloat16) == LC_F16 &&
              static_cast<int>(DType::kBFloat16) == LC_BF16 && static_cast<int>(DType::kFloat8E4M3) == LC_E4M3);

// torch's current stream of a device. NOTE: found at run time, as only a torch with CUDA has the symbol.
inline lc_stream_t current_stream(int device) {
  using Function = int32_t (*)(int32_t, void**);
  static const auto find = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
  void* stream = nullptr;
  if (!find || find(device, &stream) != 0)
    fail_unsupported("this torch has no current CUDA stream for device " + std::to_string(device),
                     "install a CUDA build of torch");
  return stream;
}

// NOTE: asked once per device: the answer stays, and finding it costs more than a launch.
inline void require_supported(int device) {
  static std::atomic<uint64_t> supported{0};
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if (supported.load(std::memory_order_relaxed) & bit) return;
  if (lc_device_supported(device) != LC_OK) fail_unsupported(lc_last_error(), "use an H100, H200 or H800");
  supported.fetch_or(bit, std::memory_order_relaxed);
}

// Runs `function(stream)`, an lc_ call, with `device` current; throws what it reports.
template <class Function>
void launch_on(int device, const Function& function) {
  require_supported(device);
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (function(current_stream(device)) != LC_OK) throw std::runtime_error(lc_last_error());
}

}  // namespace longcat_ops::bindings
