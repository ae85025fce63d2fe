// One call of an op, as a kernel's glue sees it: arguments by the schema's names, and their memory.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <memory>

#include "bindings/cpu_kernels.h"
#include "check/arguments.h"
#include "cpu/quant.h"
#include "ops/table.h"

namespace longcat_ops::bindings {

struct ReleaseTensor {
  void operator()(AtenTensorHandle tensor) const { aoti_torch_delete_tensor_object(tensor); }
};

// What is passed, unboxed by the kinds of a schema. It owns the tensors of torch's stack, as TORCH_BOX does, and
// borrows those of a call that torch does not see. It allocates nothing.
struct Unboxed {
  Unboxed(const Schema& schema, const StableIValue* stack);
  Unboxed(const Schema& schema, const PassedArgument* passed);

  std::array<std::unique_ptr<AtenTensorOpaque, ReleaseTensor>, kMaxArguments> owned;
  std::array<AtenTensorHandle, kMaxArguments> tensors{};
  std::array<Argument, kMaxArguments> arguments;
};

class Call : private Unboxed, public Arguments {
 public:
  template <class Value>  // StableIValue or PassedArgument
  Call(const Schema& schema, const Value* values)
      : Unboxed(schema, values), Arguments(schema, {arguments.data(), schema.size}) {}
  Call(const Call&) = delete;

  // Address of a tensor's first element; null if an optional one is absent. An output that shares its memory until it
  // is written (copy on write) gets memory of its own. written: throws for an input.
  void* address(std::string_view name, bool written = false) const;
  template <class T>
  const T* data(std::string_view name) const {
    return static_cast<const T*>(address(name));
  }
  template <class T>
  T* output(std::string_view name) const {
    return static_cast<T*>(address(name, true));
  }

  // A tensor [rows, columns]; without data if an optional one is absent.
  cpu::Matrix matrix(std::string_view name) const;
};

// The name of an op, as a template argument.
template <size_t N>
struct OpName {
  consteval OpName(const char (&name)[N]) { std::copy_n(name, N, text); }
  char text[N];
};

// What torch calls: the op's check, unless the caller turned checks off, then its kernel.
template <OpName kOp, void (*kKernel)(const Call&), bool (*kIsChecked)()>
void call_kernel(StableIValue* stack, uint64_t, uint64_t) {
  static const OpRow& row = find_op(kOp.text);
  const Call call(row.schema, stack);
  if (kIsChecked()) row.check(call);
  kKernel(call);
}

inline bool always() { return true; }

template <OpName kOp, void (*kKernel)(const Call&), bool (*kIsChecked)() = always>
void add_kernel(torch::stable::detail::StableLibrary& library) {
  library.impl(kOp.text, call_kernel<kOp, kKernel, kIsChecked>);
}

// A kernel on CPU tensors, which _C may call without torch.
void keep_cpu_kernel(std::string_view op, void (*kernel)(const Call&));
template <OpName kOp, void (*kKernel)(const Call&)>
void add_cpu_kernel(torch::stable::detail::StableLibrary& library) {
  add_kernel<kOp, kKernel>(library);
  keep_cpu_kernel(kOp.text, kKernel);
}

}  // namespace longcat_ops::bindings
