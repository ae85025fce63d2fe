#include "cost/explain.h"

#include <algorithm>

namespace longcat_ops {
namespace {

int64_t bytes(const Argument& argument) {
  const TensorDesc* desc = std::get_if<TensorDesc>(&argument);
  return desc ? bytes_of(*desc) : 0;
}

}  // namespace

int64_t bytes_of(const TensorDesc& tensor) { return num_elements(tensor) * element_size(tensor.dtype); }

double product_flops(int64_t rows, const TensorDesc& weight) {
  return 2.0 * rows * weight.sizes[weight.dim - 2] * weight.sizes[weight.dim - 1];
}

double row_flops(const Arguments& a) { return product_flops(a.tensor("a").sizes[0], a.tensor("b")); }

double stacked_flops(const Arguments& a) {
  const TensorDesc& x = a.tensor("a");
  return product_flops(x.sizes[0] * x.sizes[1], a.tensor("b"));
}

double gate_up_flops(const Arguments& a) { return product_flops(a.tensor("a").sizes[0], a.tensor("gate_up")); }

Explanation explain(const OpCost& cost, const Arguments& arguments) {
  const std::span<const Argument> values = arguments.values();
  Explanation out;
  for (size_t i = 0; i < values.size(); ++i)
    (i < arguments.schema().first_output ? out.bytes_read : out.bytes_written) += bytes(values[i]);
  if (cost.bytes_read) out.bytes_read = cost.bytes_read(arguments);
  if (cost.bytes_written) out.bytes_written = cost.bytes_written(arguments);
  out.flops = cost.flops ? cost.flops(arguments) : 0;
  out.assumes = cost.assumes;
  if (cost.launches) out.launches = cost.launches(arguments);
  for (KernelShape& launch : out.launches) launch.smem_bytes = round_smem(launch.smem_bytes);
  if (cost.product) out.candidates = moe_gemm_candidates(cost.product(arguments));
  return out;
}

}  // namespace longcat_ops
