#include <torch/csrc/stable/ops.h>

#include "bindings/device_launch.h"

namespace longcat_ops::bindings {
namespace {

lc_pages device_pages(const Call& a) {
  const TensorDesc& table = a.tensor("page_table");
  return {device_stack(a, "rows"), a.data<int32_t>("page_table"), table.sizes[0], table.sizes[1]};
}

void mla_write_device(const Call& a) {
  const lc_mla_write_args args{
      .struct_size = sizeof args,
      .kv = device_matrix(a, "kv"),
      .weight = a.data<float>("weight"),
      .eps = a.number("eps"),
      .rope = device_matrix(a, "rope"),
      .sequence = a.data<int32_t>("sequence"),
      .position = a.data<int32_t>("position"),
      .pages = device_pages(a),
  };
  launch_on(a.tensor("kv"), &KernelLibrary::lc_mla_write, args);
}

// Memory for as long as the call's kernels run: torch's allocator hands it out again in the order of the stream.
torch::stable::Tensor make_workspace(const TensorDesc& beside, int64_t bytes) {
  using torch::headeronly::ScalarType;
  const bool on_cpu = beside.device == DeviceKind::kCpu;
  const torch::stable::Device device(on_cpu ? torch::headeronly::DeviceType::CPU : torch::headeronly::DeviceType::CUDA,
                                     on_cpu ? -1 : beside.device_index);
  return torch::stable::empty({bytes}, ScalarType::Byte, std::nullopt, device);
}

void mla_decode_device(const Call& a) {
  const TensorDesc& q = a.tensor("q");
  lc_mla_decode_args args{
      .struct_size = sizeof args,
      .q = device_stack(a, "q"),
      .pages = device_pages(a),
      .sequence = a.data<int32_t>("sequence"),
      .position = a.data<int32_t>("position"),
      .scale = a.number("scale"),
      .split_rows = a.integer("split_rows"),
      .out = device_stack(a, "out"),
  };
  const KernelLibrary& kernels = kernel_library(q.device);
  args.workspace_bytes = with_device(q, [&] { return kernels.lc_mla_decode_workspace(&args); });
  std::optional<torch::stable::Tensor> workspace;
  if (args.workspace_bytes > 0) args.workspace = workspace.emplace(make_workspace(q, args.workspace_bytes)).data_ptr();
  launch_on(q, &KernelLibrary::lc_mla_decode, args);
}

void mla_query_device(const Call& a) {
  const lc_mla_query_args args{
      .struct_size = sizeof args,
      .q = device_stack(a, "q"),
      .w_k = device_stack(a, "w_k"),
      .rope = device_matrix(a, "rope"),
      .position = a.data<int32_t>("position"),
      .out = device_stack(a, "out"),
  };
  launch_on(a.tensor("q"), &KernelLibrary::lc_mla_query, args);
}

void register_mla(torch::stable::detail::StableLibrary& m) {
  add_device_kernel<"mla_write", mla_write_device>(m);
  add_device_kernel<"mla_decode", mla_decode_device>(m);
  add_device_kernel<"mla_query", mla_query_device>(m);
}

}  // namespace
}  // namespace longcat_ops::bindings

LC_REGISTER_DEVICE_KERNELS(register_mla)
