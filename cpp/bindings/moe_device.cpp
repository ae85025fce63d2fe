#include "bindings/device_launch.h"

namespace longcat_ops::bindings {
namespace {

void moe_route_device(const Call& a) {
  const lc_moe_route_args args{
      .struct_size = sizeof args,
      .logits = device_matrix(a, "logits"),
      .bias = a.data<float>("bias"),
      .num_valid = a.data<int32_t>("num_valid"),
      .top_k = static_cast<int32_t>(a.integer("top_k")),
      .num_zero_experts = static_cast<int32_t>(a.integer("num_zero_experts")),
      .scale = a.number("scale"),
      .ids = a.output<int32_t>("ids"),
      .weights = a.output<float>("weights"),
      .zero_weight = a.output<float>("zero_weight"),
      .num_real = a.output<uint8_t>("num_real"),
      .counts = a.output<int32_t>("counts"),
      .errors = a.output<int32_t>("errors"),
  };
  launch_on(a.tensor("logits"), &KernelLibrary::lc_moe_route, args);
}

void moe_place_device(const Call& a) {
  const TensorDesc &ids = a.tensor("ids"), &slots = a.tensor("slots");
  const lc_moe_place_args args{
      .struct_size = sizeof args,
      .ids = a.data<int32_t>("ids"),
      .tokens = ids.sizes[0],
      .top_k = static_cast<int32_t>(ids.sizes[1]),
      .experts = static_cast<int32_t>(slots.sizes[0]),
      .max_replicas = static_cast<int32_t>(slots.sizes[1]),
      .layer = static_cast<int32_t>(a.integer("layer")),
      .slots = a.data<int32_t>("slots"),
      .replicas = a.data<int32_t>("replicas"),
      .out = a.output<int32_t>("out"),
  };
  launch_on(ids, &KernelLibrary::lc_moe_place, args);
}

void moe_plan_device(const Call& a) {
  const TensorDesc& ids = a.tensor("ids");
  const lc_moe_plan_args args{
      .struct_size = sizeof args,
      .ids = a.data<int32_t>("ids"),
      .tokens = ids.sizes[0],
      .top_k = static_cast<int32_t>(ids.sizes[1]),
      .num_local = static_cast<int32_t>(a.integer("num_local")),
      .weights = a.data<float>("weights"),
      .offsets = a.output<int32_t>("offsets"),
      .row_of = a.output<int32_t>("row_of"),
      .src_of = a.output<int32_t>("src_of"),
  };
  launch_on(ids, &KernelLibrary::lc_moe_plan, args);
}

void moe_permute_device(const Call& a) {
  const lc_moe_permute_args args{
      .struct_size = sizeof args,
      .x = device_matrix(a, "x"),
      .row_of = a.data<int32_t>("row_of"),
      .top_k = static_cast<int32_t>(a.tensor("row_of").sizes[1]),
      .src_of = a.data<int32_t>("src_of"),
      .rows = a.tensor("src_of").sizes[0],
      .out = device_matrix(a, "out"),
  };
  launch_on(a.tensor("x"), &KernelLibrary::lc_moe_permute, args);
}

void moe_permute_quant_device(const Call& a) {
  const lc_moe_permute_quant_args args{
      .struct_size = sizeof args,
      .x = device_matrix(a, "x"),
      .row_of = a.data<int32_t>("row_of"),
      .top_k = static_cast<int32_t>(a.tensor("row_of").sizes[1]),
      .src_of = a.data<int32_t>("src_of"),
      .rows = a.tensor("src_of").sizes[0],
      .q = device_matrix(a, "q"),
      .s = device_matrix(a, "s"),
  };
  launch_on(a.tensor("x"), &KernelLibrary::lc_moe_permute_quant, args);
}

void moe_combine_device(const Call& a) {
  const lc_moe_combine_args args{
      .struct_size = sizeof args,
      .y = device_matrix(a, "y"),
      .row_of = a.data<int32_t>("row_of"),
      .top_k = static_cast<int32_t>(a.tensor("row_of").sizes[1]),
      .weights = a.data<float>("weights"),
      .zero_weight = a.data<float>("zero_weight"),
      .x = device_matrix(a, "x"),
      .add = device_matrix(a, "add"),
      .out = device_matrix(a, "out"),
  };
  launch_on(a.tensor("x"), &KernelLibrary::lc_moe_combine, args);
}

void register_moe(torch::stable::detail::StableLibrary& m) {
  add_device_kernel<"moe_route", moe_route_device>(m);
  add_device_kernel<"moe_place", moe_place_device>(m);
  add_device_kernel<"moe_plan", moe_plan_device>(m);
  add_device_kernel<"moe_permute", moe_permute_device>(m);
  add_device_kernel<"moe_permute_quant", moe_permute_quant_device>(m);
  add_device_kernel<"moe_combine", moe_combine_device>(m);
}

}  // namespace
}  // namespace longcat_ops::bindings

LC_REGISTER_DEVICE_KERNELS(register_moe)
