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
  add_device_kernel<"mla_query", mla_query_device>(m);
}

}  // namespace
}  // namespace longcat_ops::bindings

LC_REGISTER_DEVICE_KERNELS(register_mla)
