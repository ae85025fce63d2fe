// From a torch tensor to the torch-free descriptors and views that checks and kernels take.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>

#include "check/tensor_desc.h"
#include "cpu/quant.h"

namespace longcat_ops::bindings {

using torch::stable::Tensor;

inline DType dtype_of(const Tensor& tensor) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Float8_e4m3fn: return DType::kFloat8E4M3;
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::Int: return DType::kInt32;
    case ScalarType::Long: return DType::kInt64;
    case ScalarType::Byte: return DType::kUInt8;
    case ScalarType::Bool: return DType::kBool;
    default: return DType::kOther;
  }
}

inline TensorDesc describe_tensor(const Tensor& tensor) {
  TensorDesc desc;
  if (!tensor.defined()) {  // None
    desc.device = DeviceKind::kNone;
    return desc;
  }
  desc.dtype = dtype_of(tensor);
  if (tensor.is_cpu()) {
    desc.device = DeviceKind::kCpu;
  } else {
    desc.device = tensor.is_cuda() ? DeviceKind::kCuda : DeviceKind::kOther;
    desc.device_index = tensor.get_device_index();
  }
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  desc.dim = static_cast<int>(sizes.size());
  for (int i = 0; i < std::min(desc.dim, kMaxDims); ++i) {
    desc.sizes[i] = sizes[i];
    desc.strides[i] = strides[i];
  }
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &desc.storage_bytes));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(tensor.get(), &desc.storage_offset));
  desc.address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  return desc;
}

// The descriptor of an argument that may be None.
class OptionalDesc {
 public:
  explicit OptionalDesc(const std::optional<Tensor>& tensor) {
    if (tensor) desc_ = describe_tensor(*tensor);
  }
  const TensorDesc* get() const { return desc_ ? &*desc_ : nullptr; }

 private:
  std::optional<TensorDesc> desc_;
};

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <class T>
const T* const_data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

inline cpu::Matrix matrix_view(const void* data, const TensorDesc& desc) {
  return {const_cast<void*>(data), desc.strides[0], desc.strides[1]};
}

}  // namespace longcat_ops::bindings
