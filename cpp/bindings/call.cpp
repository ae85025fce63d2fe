#include "bindings/call.h"

#include <algorithm>
#include <stdexcept>

#include "common/text.h"

namespace longcat_ops::bindings {
namespace {

using torch::stable::detail::to;

DType dtype_of(int32_t code) {
  static const std::pair<int32_t, DType> known[] = {
      {aoti_torch_dtype_float32(), DType::kFloat32}, {aoti_torch_dtype_bfloat16(), DType::kBFloat16},
      {aoti_torch_dtype_int32(), DType::kInt32},     {aoti_torch_dtype_float8_e4m3fn(), DType::kFloat8E4M3},
      {aoti_torch_dtype_float16(), DType::kFloat16}, {aoti_torch_dtype_uint8(), DType::kUInt8},
      {aoti_torch_dtype_int64(), DType::kInt64},     {aoti_torch_dtype_float64(), DType::kFloat64},
      {aoti_torch_dtype_bool(), DType::kBool},
  };
  for (const auto& [value, dtype] : known)
    if (value == code) return dtype;
  return DType::kOther;
}

// Calls each C function behind torch::stable::Tensor once: they are most of what a small call costs.
void describe(AtenTensorHandle tensor, TensorDesc& desc) {
  bool defined = false;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_is_defined(tensor, &defined));
  if (!defined) {  // None
    desc.device = DeviceKind::kNone;
    return;
  }
  int32_t dtype = 0, device = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor, &dtype));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor, &device));
  desc.dtype = dtype_of(dtype);
  static const int32_t cpu = aoti_torch_device_type_cpu(), cuda = aoti_torch_device_type_cuda();
  if (device != cpu) {
    desc.device = device == cuda ? DeviceKind::kCuda : DeviceKind::kOther;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor, &desc.device_index));
  }
  int64_t dim = 0, *sizes = nullptr, *strides = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(tensor, &dim));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(tensor, &sizes));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(tensor, &strides));
  desc.dim = static_cast<int>(dim);
  const int kept = std::min(desc.dim, kMaxDims);
  std::copy_n(sizes, kept, desc.sizes.begin());
  std::copy_n(strides, kept, desc.strides.begin());
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor, &desc.storage_bytes));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(tensor, &desc.storage_offset));
  const void* data = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(tensor, &data));
  desc.address = reinterpret_cast<uintptr_t>(data);
}

}  // namespace

Unboxed::Unboxed(const Schema& schema, const StableIValue* stack) {
  for (size_t i = 0; i < schema.size; ++i) {
    switch (schema.parameters[i].kind) {
      case Kind::kTensor: owned[i].reset(to<AtenTensorHandle>(stack[i])); break;
      case Kind::kOptionalTensor:
        owned[i].reset(to<std::optional<AtenTensorHandle>>(stack[i]).value_or(nullptr));
        break;
      case Kind::kInt: arguments[i] = to<int64_t>(stack[i]); break;
      case Kind::kOptionalInt:
        if (const auto value = to<std::optional<int64_t>>(stack[i])) arguments[i] = *value;
        break;
      case Kind::kFloat: arguments[i] = to<double>(stack[i]); break;
      case Kind::kBool: arguments[i] = int64_t{to<bool>(stack[i])}; break;
    }
    if ((tensors[i] = owned[i].get())) describe(tensors[i], arguments[i].emplace<TensorDesc>());
  }
}

Unboxed::Unboxed(const Schema& schema, const PassedArgument* passed) {
  for (size_t i = 0; i < schema.size; ++i) {
    if (!passed[i].given) continue;
    switch (schema.parameters[i].kind) {
      case Kind::kTensor:
      case Kind::kOptionalTensor:
        tensors[i] = static_cast<AtenTensorHandle>(passed[i].tensor);
        describe(tensors[i], arguments[i].emplace<TensorDesc>());
        break;
      case Kind::kInt:
      case Kind::kOptionalInt:
      case Kind::kBool: arguments[i] = passed[i].integer; break;
      case Kind::kFloat: arguments[i] = passed[i].number; break;
    }
  }
}

void* Call::address(std::string_view name, bool written) const {
  const size_t i = index(name);
  const bool is_output = i >= schema().first_output;
  if (written && !is_output) throw std::logic_error(text(schema().op, " does not write ", name));
  const TensorDesc* desc = std::get_if<TensorDesc>(&arguments[i]);
  if (!desc) return nullptr;
  if (!is_output) return reinterpret_cast<void*>(desc->address);
  void* data = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(tensors[i], &data));
  return data;
}

cpu::Matrix Call::matrix(std::string_view name) const {
  const TensorDesc* desc = optional_tensor(name);
  return desc ? cpu::Matrix{address(name), desc->strides[0], desc->strides[1]} : cpu::Matrix{};
}

}  // namespace longcat_ops::bindings
