// What a check may know of an argument. Free of torch, so that one check serves the torch binding, Python and tests.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <variant>

namespace longcat_ops {

enum class DType : uint8_t {
  kFloat32,
  kFloat16,
  kBFloat16,
  kFloat8E4M3,
  kFloat64,
  kInt32,
  kInt64,
  kUInt8,
  kBool,
  kOther,
};

enum class DeviceKind : uint8_t { kCpu, kCuda, kMeta, kOther, kNone };  // kNone: None in place of a tensor

constexpr int kMaxDims = 8;

struct TensorDesc {
  DType dtype = DType::kOther;
  DeviceKind device = DeviceKind::kCpu;
  int device_index = 0;  // of a CUDA tensor; 0 elsewhere
  int dim = 0;           // may exceed kMaxDims; then only the first kMaxDims entries below are kept
  std::array<int64_t, kMaxDims> sizes{};
  std::array<int64_t, kMaxDims> strides{};  // in elements
  uint64_t address = 0;                     // of the first element; 0 if there is no storage
  int64_t storage_bytes = -1;               // of the memory behind the tensor; -1 when unknown
  int64_t storage_offset = 0;               // of the first element in it, in elements
};

int64_t element_size(DType dtype);                // in bytes; 1 for another dtype
int64_t num_elements(const TensorDesc& tensor);   // 0 when any size is 0
int64_t span_in_bytes(const TensorDesc& tensor);  // from the first element's start to the last one's end

// One argument of a check: absent (an output that is not allocated yet), a tensor, or a scalar.
using Argument = std::variant<std::monostate, TensorDesc, int64_t, double, std::string>;

const char* dtype_name(DType dtype);                   // "torch.bfloat16"
DType dtype_from_name(const std::string& name);        // accepts the name with or without "torch."
DeviceKind device_from_name(const std::string& name);  // "cpu", "cuda", "meta"
std::string device_text(const TensorDesc& tensor);     // "cuda:0"
std::string shape_text(const TensorDesc& tensor);      // "[7, 128]"
std::string strides_text(const TensorDesc& tensor);    // "(128, 1)"
std::string desc_text(const TensorDesc& tensor);       // "torch.bfloat16 [7, 128]"

}  // namespace longcat_ops
