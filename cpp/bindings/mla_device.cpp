#include <torch/csrc/stable/ops.h>

#include <cstddef>
#include <optional>
#include <vector>

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

// Memory for the kernels of a call. On a GPU torch's allocator hands it out again in the order of the stream, and keeps
// that of a captured call for its graph. In the emulator calls of a thread share it, as they run one after the other,
// and what a captured call has seen stays for its replays.
class Workspace {
 public:
  void* take(const TensorDesc& beside, int64_t bytes) {
    if (bytes == 0) return nullptr;
    if (beside.device == DeviceKind::kCpu) return share(static_cast<size_t>(bytes));
    const torch::stable::Device device(torch::headeronly::DeviceType::CUDA, beside.device_index);
    return own_.emplace(torch::stable::empty({bytes}, torch::headeronly::ScalarType::Byte, std::nullopt, device))
        .mutable_data_ptr();
  }

 private:
  static void* share(size_t bytes) {
    struct alignas(16) Unit {
      std::byte bytes[16];
    };
    thread_local std::vector<std::vector<Unit>> kept;
    const size_t units = (bytes + 15) / 16;
    if (kept.empty() || kept.back().size() < units) kept.emplace_back(units);
    return kept.back().data();
  }

  std::optional<torch::stable::Tensor> own_;
};

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
      .workspace = nullptr,
      .workspace_bytes = 0,
  };
  const KernelLibrary& kernels = kernel_library(q.device);
  args.workspace_bytes = with_device(q, [&] { return kernels.lc_mla_decode_workspace(&args); });
  Workspace workspace;
  args.workspace = workspace.take(q, args.workspace_bytes);
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
