#include "cpu/step.h"

#include "bindings/call.h"

namespace longcat_ops::bindings {
namespace {

void pack_rows_cpu(const Call& a) {
  const TensorDesc& tokens = a.tensor("tokens");
  cpu::pack_rows({
      .tokens = a.matrix("tokens"),
      .sequences = tokens.sizes[0],
      .width = tokens.sizes[1],
      .copies = a.tensor("num_rows").sizes[0],
      .num_drafts = a.data<int32_t>("num_drafts"),
      .lengths = a.data<int32_t>("lengths"),
      .ids = a.output<int64_t>("ids"),
      .sequence = a.output<int32_t>("sequence"),
      .position = a.output<int32_t>("position"),
      .first_row = a.output<int32_t>("first_row"),
      .num_rows = a.output<int32_t>("num_rows"),
  });
}

void advance_lengths_cpu(const Call& a) {
  const TensorDesc& tokens = a.tensor("tokens");
  cpu::advance_lengths({
      .tokens = a.matrix("tokens"),
      .sequences = tokens.sizes[0],
      .width = tokens.sizes[1],
      .num_stop_ids = a.tensor("stop_ids").sizes[0],
      .num_tokens = a.data<int32_t>("num_tokens"),
      .first_row = a.data<int32_t>("first_row"),
      .limits = a.data<int32_t>("limits"),
      .stop_ids = a.data<int64_t>("stop_ids"),
      .lengths = a.output<int32_t>("lengths"),
      .num_drafts = a.output<int32_t>("num_drafts"),
      .kept = a.output<int32_t>("kept"),
      .newest = a.output<int64_t>("newest"),
      .newest_stride = a.tensor("newest").strides[0],
      .last_row = a.output<int64_t>("last_row"),
  });
}

}  // namespace
}  // namespace longcat_ops::bindings

STABLE_TORCH_LIBRARY_IMPL(longcat_ops, CPU, m) {
  using namespace longcat_ops::bindings;
  add_cpu_kernel<"pack_rows", pack_rows_cpu>(m);
  add_cpu_kernel<"advance_lengths", advance_lengths_cpu>(m);
}
