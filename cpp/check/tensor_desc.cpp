#include "check/tensor_desc.h"

#include <algorithm>
#include <sstream>
#include <utility>

namespace longcat_ops {
namespace {

constexpr std::pair<DType, const char*> kDTypeNames[] = {
    {DType::kFloat32, "torch.float32"},   {DType::kFloat16, "torch.float16"},
    {DType::kBFloat16, "torch.bfloat16"}, {DType::kFloat8E4M3, "torch.float8_e4m3fn"},
    {DType::kFloat64, "torch.float64"},   {DType::kInt32, "torch.int32"},
    {DType::kInt64, "torch.int64"},       {DType::kUInt8, "torch.uint8"},
    {DType::kBool, "torch.bool"},
};

std::string list_text(const std::array<int64_t, kMaxDims>& values, int dim, char open, char close) {
  std::ostringstream out;
  out << open;
  for (int i = 0; i < std::min(dim, kMaxDims); ++i) out << (i ? ", " : "") << values[i];
  if (dim > kMaxDims) out << ", ...";
  out << close;
  return out.str();
}

}  // namespace

int64_t element_size(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64: return 8;
    case DType::kFloat32:
    case DType::kInt32: return 4;
    case DType::kFloat16:
    case DType::kBFloat16: return 2;
    default: return 1;
  }
}

int64_t num_elements(const TensorDesc& tensor) {
  int64_t count = 1;
  for (int i = 0; i < std::min(tensor.dim, kMaxDims); ++i) count *= tensor.sizes[i];
  return count;
}

int64_t span_in_bytes(const TensorDesc& tensor) {
  if (num_elements(tensor) == 0) return 0;
  int64_t last = 0;
  for (int i = 0; i < std::min(tensor.dim, kMaxDims); ++i) last += (tensor.sizes[i] - 1) * tensor.strides[i];
  return (last + 1) * element_size(tensor.dtype);
}

const char* dtype_name(DType dtype) {
  for (const auto& [value, name] : kDTypeNames)
    if (value == dtype) return name;
  return "another dtype";
}

DType dtype_from_name(const std::string& name) {
  const std::string full = name.rfind("torch.", 0) == 0 ? name : "torch." + name;
  for (const auto& [value, known] : kDTypeNames)
    if (full == known) return value;
  return DType::kOther;
}

DeviceKind device_from_name(const std::string& name) {
  if (name == "cpu") return DeviceKind::kCpu;
  if (name == "cuda") return DeviceKind::kCuda;
  if (name == "meta") return DeviceKind::kMeta;
  return DeviceKind::kOther;
}

std::string device_text(const TensorDesc& tensor) {
  switch (tensor.device) {
    case DeviceKind::kCpu: return "cpu";
    case DeviceKind::kCuda: return "cuda:" + std::to_string(tensor.device_index);
    case DeviceKind::kMeta: return "meta";
    case DeviceKind::kOther:
    case DeviceKind::kNone: break;
  }
  return "another device type";
}

std::string shape_text(const TensorDesc& tensor) { return list_text(tensor.sizes, tensor.dim, '[', ']'); }
std::string strides_text(const TensorDesc& tensor) { return list_text(tensor.strides, tensor.dim, '(', ')'); }
std::string desc_text(const TensorDesc& tensor) {
  return std::string(dtype_name(tensor.dtype)) + " " + shape_text(tensor);
}

}  // namespace longcat_ops
