#include "check/tensor_checks.h"

#include <algorithm>
#include <array>

#include "check/error.h"

namespace longcat_ops {
namespace {

std::string sizes_text(std::initializer_list<int64_t> sizes) {
  std::string out = "[";
  for (const int64_t size : sizes) out += (out.size() > 1 ? ", " : "") + std::to_string(size);
  return out + "]";
}

bool overlap(const TensorDesc& a, const TensorDesc& b) {
  if (!a.address || !b.address || a.device != b.device || a.device_index != b.device_index) return false;
  const uint64_t a_end = a.address + span_in_bytes(a), b_end = b.address + span_in_bytes(b);
  return a.address < b_end && b.address < a_end && num_elements(a) > 0 && num_elements(b) > 0;
}

void check_apart(const char* op, std::string_view output_name, const TensorDesc& output, std::string_view other_name,
                 const TensorDesc& other) {
  if (!overlap(output, other)) return;
  const std::string name(output_name);
  fail_argument(op, name.c_str(), text("in memory shared with `", other_name, "`"), "memory of its own",
                describe(name.c_str(), output), text("pass torch.empty_like(", name, ")"));
}

}  // namespace

std::string describe(const char* name, const TensorDesc& tensor) {
  return text(name, ": ", desc_text(tensor), " on ", device_text(tensor));
}

bool is_floating(DType dtype) {
  return dtype == DType::kBFloat16 || dtype == DType::kFloat16 || dtype == DType::kFloat32;
}

void check_device(const char* op, const char* name, const TensorDesc& tensor) {
  LC_CHECK(tensor.device != DeviceKind::kNone, op, name, "None", "a torch.Tensor", "", "");
  LC_CHECK(tensor.device != DeviceKind::kOther, op, name, "on another device type", "a tensor on cpu or cuda",
           desc_text(tensor), "move it with .cpu() or .cuda()");
}

void check_rank(const char* op, const char* name, const TensorDesc& tensor, int rank, const char* layout,
                const char* fix) {
  check_device(op, name, tensor);
  const auto default_fix = [&]() -> std::string {
    if (*fix) return fix;
    if (tensor.dim == rank - 1) return text(name, "[None]", rank == 3 ? " is a stack of one" : "");
    return rank == 2 && tensor.dim > 2 ? text(name, ".flatten(0, -2)") : "";
  };
  LC_CHECK(tensor.dim == rank, op, name, text(tensor.dim, "-D ", shape_text(tensor)), text(rank, "-D ", layout), "",
           default_fix());
}

void check_dtype(const char* op, const char* name, const TensorDesc& tensor, DType expected) {
  LC_CHECK(tensor.dtype == expected, op, name, dtype_name(tensor.dtype), dtype_name(expected), describe(name, tensor),
           expected == DType::kFloat32 && is_floating(tensor.dtype) ? text(name, ".float()") : "");
}

void check_floating(const char* op, const char* name, const TensorDesc& tensor) {
  check_device(op, name, tensor);
  LC_CHECK(is_floating(tensor.dtype), op, name, dtype_name(tensor.dtype),
           "torch.bfloat16, torch.float16 or torch.float32", describe(name, tensor), text(name, ".float()"));
}

void check_multiple(const char* op, const char* name, const TensorDesc& tensor, int dimension, const char* layout,
                    const char* size_name, int64_t multiple) {
  const int64_t size = tensor.sizes[dimension];
  const bool halves = multiple != kWidthMultiple;  // gate and up: the size is 2I, and I counts
  const auto fix = [&] {
    const int64_t rounded = std::max<int64_t>(size + multiple - 1, multiple) / multiple * multiple;
    if (halves) return text("pad gate and up with zeros to ", rounded / 2, " each");
    return text("pad `", name, "` with zeros along ", size_name, " (dimension ", dimension, ") to ", rounded);
  };
  LC_CHECK(size > 0 && size % multiple == 0, op, name, "of shape " + shape_text(tensor),
           text(layout, " with ", size_name, " a positive multiple of ", kWidthMultiple), describe(name, tensor),
           fix());
}

void check_shape(const char* op, const char* name, const TensorDesc& tensor, std::initializer_list<int64_t> sizes,
                 Named like) {
  const bool equal =
      tensor.dim == static_cast<int>(sizes.size()) && std::equal(sizes.begin(), sizes.end(), tensor.sizes.begin());
  LC_CHECK(equal, op, name, "of shape " + shape_text(tensor), sizes_text(sizes), describe(like.name, *like.tensor), "");
}

void check_memory(const char* op, const char* name, const TensorDesc& tensor) {
  const int64_t size = element_size(tensor.dtype);
  if (tensor.storage_bytes >= 0 && tensor.device != DeviceKind::kMeta && num_elements(tensor) > 0) {
    const int64_t reach = tensor.storage_offset * size + span_in_bytes(tensor);
    const int64_t held = tensor.address == 0 ? 0 : tensor.storage_bytes;
    LC_CHECK(reach <= held, op, name, held == 0 ? "without memory" : text("in a storage of ", held, " bytes"),
             text("the ", reach, " bytes that its shape, strides and offset reach"), describe(name, tensor),
             "allocate or gather it again: its storage was freed or shrunk");
  }
  LC_CHECK(tensor.address % size == 0, op, name,
           text("at an address ", tensor.address % size, " past a multiple of ", size),
           text("an address that is a multiple of its ", size, "-byte elements"), describe(name, tensor),
           text(name, ".clone()"));
}

void check_same_device(const char* op, Named argument, Named like) {
  const TensorDesc &tensor = *argument.tensor, &leader = *like.tensor;
  LC_CHECK(tensor.device != DeviceKind::kNone, op, argument.name, "None", "a torch.Tensor", "", "");
  LC_CHECK(tensor.device == leader.device && tensor.device_index == leader.device_index, op, argument.name,
           "on " + device_text(tensor), "on " + device_text(leader) + text(", the device of `", like.name, "`"),
           describe(like.name, leader), "");
}

void check_operand(const char* op, Named argument, DType dtype, std::initializer_list<int64_t> sizes, Named like) {
  check_same_device(op, argument, like);
  check_dtype(op, argument.name, *argument.tensor, dtype);
  check_shape(op, argument.name, *argument.tensor, sizes, like);
  check_memory(op, argument.name, *argument.tensor);
}

void check_lead(const char* op, Named argument, int rank, const char* layout, const char* fix) {
  check_rank(op, argument.name, *argument.tensor, rank, layout, fix);
  check_memory(op, argument.name, *argument.tensor);
}

void check_contiguous(const char* op, const char* name, const TensorDesc& tensor) {
  int64_t expected = 1;
  bool contiguous = true;
  for (int i = tensor.dim - 1; i >= 0; --i) {
    contiguous &= tensor.strides[i] == expected || tensor.sizes[i] <= 1;
    expected *= tensor.sizes[i];
  }
  LC_CHECK(contiguous || num_elements(tensor) == 0, op, name, "of strides " + strides_text(tensor), "contiguous",
           describe(name, tensor), text(name, ".contiguous()"));
}

void check_unit_inner_stride(const char* op, const char* name, const TensorDesc& tensor) {
  const int last = tensor.dim - 1;
  LC_CHECK(tensor.strides[last] == 1 || tensor.sizes[last] <= 1 || num_elements(tensor) == 0, op, name,
           "of strides " + strides_text(tensor), "a last stride of 1", describe(name, tensor),
           text(name, ".contiguous()"));
}

void check_elements_apart(const char* op, const char* name, const TensorDesc& tensor) {
  // By rising stride, each dimension must step over everything that those before it reach.
  std::array<int, kMaxDims> order{};
  int count = 0;
  for (int i = 0; i < tensor.dim; ++i)
    if (tensor.sizes[i] > 1) order[count++] = i;
  std::sort(order.begin(), order.begin() + count, [&](int a, int b) { return tensor.strides[a] < tensor.strides[b]; });
  int64_t reach = 1;
  bool apart = true;
  for (int i = 0; i < count; ++i) {
    apart &= tensor.strides[order[i]] >= reach;
    reach += (tensor.sizes[order[i]] - 1) * tensor.strides[order[i]];
  }
  LC_CHECK(apart || num_elements(tensor) == 0, op, name, "of strides " + strides_text(tensor),
           "no two elements at one address", describe(name, tensor), "pass an output that is not expanded");
}

void check_no_alias(const char* op, const Arguments& a) {
  const auto& parameters = a.schema().parameters;
  const std::span<const Argument> values = a.values().first(std::min(a.values().size(), a.schema().size));
  for (size_t i = a.schema().first_output; i < values.size(); ++i) {
    const TensorDesc* output = std::get_if<TensorDesc>(&values[i]);
    for (size_t j = 0; output && j < i; ++j)
      if (const TensorDesc* other = std::get_if<TensorDesc>(&values[j]))
        check_apart(op, parameters[i].name, *output, parameters[j].name, *other);
  }
}

void check_no_alias(const char* op, std::initializer_list<Named> inputs, Named output) {
  if (!output.tensor) return;
  for (const Named& input : inputs)
    if (input.tensor) check_apart(op, output.name, *output.tensor, input.name, *input.tensor);
}

void check_output_rows(const char* op, Named output, DType dtype, std::initializer_list<int64_t> sizes, Named like) {
  check_operand(op, output, dtype, sizes, like);
  check_unit_inner_stride(op, output.name, *output.tensor);
  check_elements_apart(op, output.name, *output.tensor);
}

}  // namespace longcat_ops
