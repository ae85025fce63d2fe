#include "bindings/device_launch.h"

namespace longcat_ops::bindings {
namespace {

void pack_rows_device(const Call& a) {
  const TensorDesc& tokens = a.tensor("tokens");
  const lc_pack_rows_args args{
      .struct_size = sizeof args,
      .tokens = a.data<int64_t>("tokens"),
      .sequences = tokens.sizes[0],
      .width = tokens.sizes[1],
      .token_stride = tokens.strides[0],
      .num_drafts = a.data<int32_t>("num_drafts"),
      .lengths = a.data<int32_t>("lengths"),
      .ids = a.output<int64_t>("ids"),
      .sequence = a.output<int32_t>("sequence"),
      .position = a.output<int32_t>("position"),
      .first_row = a.output<int32_t>("first_row"),
      .num_rows = a.output<int32_t>("num_rows"),
      .copies = a.tensor("num_rows").sizes[0],
  };
  launch_on(tokens, &KernelLibrary::lc_pack_rows, args);
}

void advance_lengths_device(const Call& a) {
  const TensorDesc& tokens = a.tensor("tokens");
  const lc_advance_lengths_args args{
      .struct_size = sizeof args,
      .tokens = a.data<int64_t>("tokens"),
      .sequences = tokens.sizes[0],
      .width = tokens.sizes[1],
      .token_stride = tokens.strides[0],
      .num_tokens = a.data<int32_t>("num_tokens"),
      .first_row = a.data<int32_t>("first_row"),
      .limits = a.data<int32_t>("limits"),
      .stop_ids = a.data<int64_t>("stop_ids"),
      .num_stop_ids = a.tensor("stop_ids").sizes[0],
      .lengths = a.output<int32_t>("lengths"),
      .num_drafts = a.output<int32_t>("num_drafts"),
      .newest = a.output<int64_t>("newest"),
      .newest_stride = a.tensor("newest").strides[0],
      .kept = a.output<int32_t>("kept"),
      .last_row = a.output<int64_t>("last_row"),
  };
  launch_on(tokens, &KernelLibrary::lc_advance_lengths, args);
}

void register_step(torch::stable::detail::StableLibrary& m) {
  add_device_kernel<"pack_rows", pack_rows_device>(m);
  add_device_kernel<"advance_lengths", advance_lengths_device>(m);
}

}  // namespace
}  // namespace longcat_ops::bindings

LC_REGISTER_DEVICE_KERNELS(register_step)
